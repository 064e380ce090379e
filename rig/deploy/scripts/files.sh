# Files in their places, each put there in one moment.
# $1: root folder, $2: device, $3: what was uploaded, $4: "own" if the device's folder in /etc/earshot holds these files
# and no other ones, then FILE PATH MODE OWNER SHA256 of each

check() {
  root=$1 device=$2 own=$4
  shift 4
  code=0
  if [ "$own" = own ]; then
    for there in "$root/etc/earshot/${device:?}"/*; do
      if [ -f "$there" ] && ! wanted "$there" "$@"; then tell "$there is not needed any more"; fi
    done
  fi
  while [ $# -gt 0 ]; do
    path=$root$2
    if [ -L "$path" ] || [ ! -f "$path" ]; then
      tell "$2 is missing"
    elif [ "$(stat -c '%a %u:%g' -- "$path")" != "$3 $(ids "$4")" ]; then
      tell "$2 has another mode or owner"
    elif [ "$(sha256sum <"$path")" != "$5  -" ]; then
      tell "$2 differs"
    fi
    shift 5
  done
  return $code
}
act() {
  root=$1 device=$2 from=$3 own=$4
  shift 4
  umask 022
  mkdir -p "$root/opt/earshot/restart"
  touch "$root/opt/earshot/restart/${device:?}"
  if [ "$own" = own ]; then
    for there in "$root/etc/earshot/$device"/*; do
      if [ -f "$there" ] && ! wanted "$there" "$@"; then rm -f -- "$there"; fi
    done
  fi
  while [ $# -gt 0 ]; do
    path=$root$2
    mkdir -p -- "$(dirname -- "$path")"
    (umask 077 && cat -- "$from/$1" >"$path.$$")
    chown "$(ids "$4")" -- "$path.$$"
    chmod "$3" -- "$path.$$"
    sync -- "$path.$$"
    mv -T -- "$path.$$" "$path"
    shift 5
  done
}
wanted() {
  it=$1
  shift
  while [ $# -gt 0 ]; do
    if [ "$it" = "$root$2" ]; then return 0; fi
    shift 5
  done
  return 1
}
tell() { echo "$1"; code=1; }
ids() { echo "$(id_of passwd "$1"):$(id_of group "$1")"; }
id_of() { awk -F: -v name="$2" '$1 == name { print $3 }' "$root/etc/$1"; }
