# The device's state folder: its first bundle and the keys it trusts.
# $1: root folder, $2: account, $3: device, $4: what was uploaded, then the arguments of `earshot-device provision`

check() {
  [ -f "$1/var/lib/earshot/$3/slots/pointer.json" ]
}
act() {
  root=$1 account=$2 device=$3 from=$4
  shift 4
  uid=$(id_of passwd "$account") gid=$(id_of group "$account") state=$root/var/lib/earshot
  mkdir -p "$root/var/lib"
  install -d -m 0700 -o "$uid" -g "$gid" "$state"
  work=$(mktemp -d "$state/.install.XXXXXXXX")
  trap 'rm -rf -- "$work"' EXIT
  cp -R -- "$from/provision/." "$work"
  chown -R "$uid:$gid" "$work"
  cd "$work"
  umask 077
  setpriv --reuid="$uid" --regid="$gid" --clear-groups --no-new-privs env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 \
    ORT_DISABLE_TELEMETRY=1 "$root/opt/earshot/current/bin/python" -I -m edge.cli provision \
    --name "$device" --state-dir "$state" "$@"
  mkdir -p "$root/opt/earshot/restart"
  touch "$root/opt/earshot/restart/$device"
}
id_of() { awk -F: -v name="$2" '$1 == name { print $3 }' "$root/etc/$1"; }
