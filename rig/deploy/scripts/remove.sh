# A device goes, and with the last one the program.
# $1: root folder, $2: account, $3: device ("" for all), $4: "purge" what it knows, too, or "keep" that

check() {
  root=$1 device=$3
  for device in $(devices "$3"); do
    if [ -e "$root/etc/earshot/$device.toml" ] || [ -e "$root/etc/earshot/$device" ]; then return 1; fi
    if [ "$4" = purge ] && [ -e "$root/var/lib/earshot/$device" ]; then return 1; fi
  done
  if ! others; then
    for left in etc/systemd/system/earshot-device@.service usr/local/bin/earshot-device opt/earshot; do
      if [ -e "$root/$left" ]; then return 1; fi
    done
    if [ "$4" = purge ] && { [ -e "$root/var/lib/earshot" ] || grep -q "^$2:" "$root/etc/passwd"; }; then return 1; fi
  fi
}
act() {
  root=$1 device=$3
  for device in $(devices "$3"); do
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
      systemctl --quiet disable --now "earshot-device@$device.service" || true
    fi
    rm -f -- "$root/etc/systemd/system/multi-user.target.wants/earshot-device@$device.service"
    rm -f -- "$root/opt/earshot/restart/$device" "$root/etc/earshot/$device.toml"
    rm -rf -- "$root/etc/earshot/${device:?}"
    echo "removed $device"
    if [ "$4" = purge ]; then rm -rf -- "$root/var/lib/earshot/${device:?}"; fi
  done
  if others; then return 0; fi
  rm -f -- "$root/etc/systemd/system/earshot-device@.service" "$root/usr/local/bin/earshot-device"
  rm -rf -- "$root/opt/earshot"
  if [ -d "$root/etc/earshot" ]; then rmdir -- "$root/etc/earshot" || true; fi
  if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
  if [ "$4" = purge ]; then
    rm -rf -- "$root/var/lib/earshot"
    if grep -q "^$2:" "$root/etc/passwd"; then userdel ${root:+--prefix "$root"} "$2"; fi
    if grep -q "^$2:" "$root/etc/group"; then groupdel ${root:+--prefix "$root"} "$2"; fi
  fi
}
devices() {
  if [ -n "$1" ]; then
    echo "$1"
    return
  fi
  for each in "$root"/etc/earshot/*.toml; do
    if [ -e "$each" ]; then basename "$each" .toml; fi
  done
}
# Are there other devices?
others() {
  for each in "$root"/etc/earshot/*.toml; do
    if [ -e "$each" ] && [ "$each" != "$root/etc/earshot/$device.toml" ]; then return 0; fi
  done
  return 1
}
