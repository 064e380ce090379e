# What this machine is, as lines KEY=VALUE. $1: the folder that stands for / (empty: / itself)

act() {
  # Whatever is missing here is told as missing, not as a failure.
  set +e
  root=$1
  PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  say system "$(uname -s)"
  say machine "$(uname -m)"
  say long_bit "$(getconf LONG_BIT 2>/dev/null)"
  say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
  say os "$(sed -n 's/^PRETTY_NAME="\(.*\)"$/\1/p' "$root/etc/os-release" 2>/dev/null)"
  say apt "$(command -v apt-get)"
  say sudo "$(sudo_kind)"
  say systemd "$(systemctl --version 2>/dev/null | awk 'NR == 1 { print $2 }')"
  say systemd_runs "$(if [ -d /run/systemd/system ]; then echo yes; fi)"
  say root "$(if [ -f "$root/etc/passwd" ]; then echo yes; fi)"
  say program_free_kb "$(free_kb "$root/opt/earshot")"
  say upload_free_kb "$(free_kb /var/tmp)"
  for name in python3 /usr/local/bin/python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
    path=$(command -v "$name") && say python "$("$path" -I -c "$about_python" 2>/dev/null)"
  done
  return 0
}
about_python='
import importlib.util, struct, sys
version = "%d.%d.%d" % sys.version_info[:3]
venv = "venv" if importlib.util.find_spec("venv") else "-"
print(version, struct.calcsize("P") * 8, venv, sys.base_prefix, sys.executable)
'
say() { printf '%s=%s\n' "$1" "$2"; }
sudo_kind() {
  if [ "$(id -u)" = 0 ]; then
    echo root
  elif ! command -v sudo >/dev/null; then
    echo absent
  elif sudo -n -k true 2>/dev/null; then
    echo free
  else
    echo password
  fi
}
free_kb() {
  place=$1
  while [ ! -d "$place" ]; do place=$(dirname -- "$place"); done
  df -Pk -- "$place" | awk 'NR == 2 { print $4 }'
}
