#!/bin/bash
# Writes what the kernel and the programs say about rules.sh, and the trace messages of some packets. Needs root, nft,
# iptables-nft and its siblings; run it as `bash capture.sh` after `cargo build --example capture-nftables`.
set -eu
cd "$(dirname "$0")"
[ "${1-}" = inside ] || exec unshare -n bash "$0" inside

capture=../../../target/debug/examples/capture-nftables
. ./rules.sh
"$capture" dump ruleset.bin
nft -a list ruleset >ruleset.nft
iptables-nft-save >ip.save
ip6tables-nft-save >ip6.save
ebtables-nft-save >bridge.save
arptables-nft-save >arp.save

send() { # FILE PROTOCOL ADDRESS PORT
    "$capture" trace "$1" timeout 1 bash -c "echo x >/dev/$2/$3/$4" 2>/dev/null
}
send udp.bin udp 127.0.0.1 5000
send udp6.bin udp ::1 5000
send tcp-reset.bin tcp 127.0.0.1 5001
send tcp-drop.bin tcp 127.0.0.1 5002
send ingress-drop.bin udp 127.0.0.1 5003
