# Versions that are neither the current nor the previous one go. $1: root folder

check() {
  for_each_old "$1" false
}
act() {
  for_each_old "$1" rm -rf --
}
for_each_old() {
  cd "$1/opt/earshot" || return 0
  shift
  current=$(readlink current || true) previous=$(readlink previous || true)
  for folder in venv-*; do
    if [ ! -d "$folder" ] || [ "$folder" = "$current" ] || [ "$folder" = "$previous" ]; then continue; fi
    "$@" "$folder" || return 1
  done
}
