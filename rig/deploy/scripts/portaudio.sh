# PortAudio, without which no sound card is heard. $1: root folder

check() {
  for library in "$1"/usr/lib/*/libportaudio.so.2 "$1"/usr/lib*/libportaudio.so.2 "$1"/usr/local/lib/libportaudio.so.2; do
    if [ -e "$library" ]; then return 0; fi
  done
  return 1
}
act() {
  export DEBIAN_FRONTEND=noninteractive
  install || { apt-get -q update && install; }
}
install() { apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends libportaudio2; }
