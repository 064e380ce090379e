# A place for what is sent: nobody else's eyes, and on the disk, since /tmp may be memory.

make() {
  umask 077
  mktemp -d /var/tmp/earshot.XXXXXXXX
}
# $1: the folder that make() made
remove() {
  rm -rf -- "$1"
}
