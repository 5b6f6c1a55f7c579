#!/bin/bash
# Two hosts on one machine: network namespaces with a cable between them, a name and a folder of its own for each.
# What docs/clusters.md tells of two hosts was run in them. Needs Linux, root and iproute2.
#
#   two_hosts.sh up              makes vh1 (10.78.0.1) and vh2 (10.78.0.2)
#   two_hosts.sh on 2 COMMAND    runs a command on the second one, in $HOSTS/h2
#   two_hosts.sh cut | mend      pulls the cable, and puts it back: nobody is told, packets are lost
#   two_hosts.sh down            takes both away; the folders stay
set -eu

HOSTS=${HOSTS:-$PWD/two_hosts}

up() {
    for i in 1 2; do
        ip netns add "vh$i"
        mkdir -p "/etc/netns/vh$i" "$HOSTS/h$i"
        printf '127.0.0.1 localhost\n10.78.0.1 vh1\n10.78.0.2 vh2\n' > "/etc/netns/vh$i/hosts"
    done
    ip link add vc1 netns vh1 type veth peer name vc2 netns vh2
    for i in 1 2; do
        ip -n "vh$i" link set lo up
        ip -n "vh$i" addr add "10.78.0.$i/24" dev "vc$i"
        ip -n "vh$i" link set "vc$i" up
    done
}

down() {
    for i in 1 2; do
        ip netns del "vh$i" || true
        rm -rf "/etc/netns/vh$i"
    done
}

on() {
    local i=$1
    shift
    cd "$HOSTS/h$i"
    # shellcheck disable=SC2016 # the inner shell is to see them
    exec ip netns exec "vh$i" unshare --uts bash -c 'hostname "$1"; shift; exec "$@"' _ "vh$i" \
        env GLOO_SOCKET_IFNAME="vc$i" TP_SOCKET_IFNAME="vc$i" "$@"
}

case ${1:-} in
    up) up ;;
    down) down ;;
    cut) ip -n vh2 link set vc2 down ;;
    mend) ip -n vh2 link set vc2 up ;;
    on) shift; on "$@" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
