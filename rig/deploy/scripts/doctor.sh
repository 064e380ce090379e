# What the device itself finds. $1: account, $2: device

act() {
  service=earshot-device@$2.service
  # The sound card takes one program at a time.
  systemctl --quiet stop "$service" || true
  setpriv --reuid="$1" --regid="$1" --init-groups --no-new-privs env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 \
    ORT_DISABLE_TELEMETRY=1 HOME=/var/lib/earshot \
    /opt/earshot/current/bin/python -I -m edge.cli doctor --config "/etc/earshot/$2.toml" --json || true
}
