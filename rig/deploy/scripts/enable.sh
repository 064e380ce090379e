# Start with the system. $1: root folder, $2: device

check() {
  [ -L "$1/etc/systemd/system/multi-user.target.wants/earshot-device@$2.service" ]
}
act() {
  systemctl --root="${1:-/}" --quiet enable "earshot-device@$2.service"
}
