# One version of the program in a folder of its own.
# $1: root folder, $2: the version's folder, $3: Python, $4: what was uploaded, $5: "offline" or "online"

check() {
  [ -f "$1/opt/earshot/$2/.complete" ] && "$1/opt/earshot/$2/bin/python" -I -c ''
}
act() {
  umask 022
  folder=$1/opt/earshot/$2
  mkdir -p "$1/opt/earshot"
  # What an interrupted run left is in pieces.
  rm -rf -- "$folder"
  "$3" -I -m venv --without-pip "$folder"
  if [ "$5" = offline ]; then index=--no-index; else index=; fi
  # pip runs out of its own wheel: Debian's Python has none, and the device needs none later.
  for pip in "$4"/wheels/pip-*.whl; do
    "$folder/bin/python" -I "$pip/pip" --no-input --disable-pip-version-check --no-cache-dir \
      install $index --find-links "$4/wheels" --require-hashes --only-binary :all: --progress-bar off \
      -r "$4/requirements.txt" 2>&1
  done
  "$folder/bin/python" -I -m edge.cli --version
  sync -f "$folder"
  touch "$folder/.complete"
  sync -f "$folder"
}
