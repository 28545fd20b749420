#!/bin/sh
# Writes FAMILY-TABLE.info, .blob and .save here, from rules.sh. Needs root, iptables, and a kernel with legacy tables;
# run it as `sh capture.sh` after `cargo build --example capture-xtables`.
set -eu
cd "$(dirname "$0")"
[ "${1-}" = inside ] || exec unshare -n sh "$0" inside

sh rules.sh
../../../target/debug/examples/capture-xtables .
for table in raw mangle nat filter security; do
    iptables-legacy-save -t "$table" | grep -v '^#' >"ip-$table.save"
done
for table in filter mangle nat; do
    ip6tables-legacy-save -t "$table" | grep -v '^#' >"ip6-$table.save"
done
