# The service account, which may use sound cards and nothing else. $1: root folder, $2: account

check() {
  grep -q "^$2:" "$1/etc/passwd" && grep -Eq "^audio:.*[:,]$2(,|\$)" "$1/etc/group"
}
act() {
  printf '%s\n' "u $2 - \"earshot device\" /var/lib/earshot" "g audio -" "m $2 audio" |
    systemd-sysusers ${1:+--root="$1"} -
}
