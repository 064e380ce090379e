# Debian packages for the scripts beside this file: apt_install, apt_line. To be sourced.

# With root's rights or a sudo that asks nothing, apt-get may be called; APT=no forbids it.
apt_prefix() {
  [ "${APT:-}" != no ] && command -v apt-get >/dev/null || return 1
  if [ "$(id -u)" = 0 ]; then
    echo "env"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    echo "sudo -n env"
  else
    return 1
  fi
}

# The line a person can type.
apt_line() {
  if [ "$(id -u)" = 0 ]; then echo "apt-get install -y $*"; else echo "sudo apt-get install -y $*"; fi
}

# Install the packages named, or return 1 where that is not allowed or fails.
apt_install() {
  local prefix
  prefix=$(apt_prefix) || return 1
  echo "earshot: installing Debian packages: $*" >&2
  local options="-qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=3"
  # A new machine knows no packages before its first update; a stale list is refreshed the same way.
  # shellcheck disable=SC2086
  {
    $prefix DEBIAN_FRONTEND=noninteractive apt-get $options install -y --no-install-recommends "$@" </dev/null ||
      { $prefix apt-get $options update </dev/null &&
        $prefix DEBIAN_FRONTEND=noninteractive apt-get $options install -y --no-install-recommends "$@" </dev/null; }
  } >&2
}
