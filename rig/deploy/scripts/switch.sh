# Which version runs: "current" names it, "previous" the one before. $1: root folder, $2: the version's folder

check() {
  [ "$(readlink "$1/opt/earshot/current")" = "$2" ]
}
act() {
  cd "$1/opt/earshot"
  before=$(readlink current || true)
  if [ -n "$before" ] && [ -d "$before" ]; then point previous "$before"; fi
  mkdir -p restart
  for config in "$1"/etc/earshot/*.toml; do
    if [ -e "$config" ]; then touch "restart/$(basename "$config" .toml)"; fi
  done
  point current "$2"
  sync -f .
}
point() { ln -s -- "$2" ".$1.$$" && mv -T -- ".$1.$$" "$1"; }
