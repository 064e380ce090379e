# Run what is installed now. $1: device

check() {
  systemctl --quiet is-active "earshot-device@$1.service" || return 1
  for changed in /opt/earshot/restart/*; do
    if [ -e "$changed" ]; then return 1; fi
  done
}
act() {
  systemctl daemon-reload
  touch "/opt/earshot/restart/$1"
  for changed in /opt/earshot/restart/*; do
    device=$(basename "$changed")
    service=earshot-device@$device.service
    systemctl reset-failed "$service" 2>/dev/null || true
    # Type=notify: it is up when it says so. Another device that somebody stopped stays so.
    if [ "$device" = "$1" ]; then verb=restart; else verb=try-restart; fi
    if ! systemctl "$verb" "$service"; then
      last_words
      return 1
    fi
    rm -f -- "$changed"
  done
  service=earshot-device@$1.service
  # What dies, dies soon: of a wrong password, a missing sound card.
  sleep 3
  if ! systemctl --quiet is-active "$service" || [ "$(systemctl show --property NRestarts --value "$service")" != 0 ]; then
    last_words
    return 1
  fi
}
last_words() { journalctl --unit "$service" --lines 5 --output cat --no-pager >&2 || true; }
