#!/bin/sh
# Makes this pod's node, once, in its own volume: joins a mesh with the invitation in
# $INVITATION/line, or founds one where FOUND=yes and this is the first pod. The key is made here and
# is never anywhere else.
set -eu
umask 077
data=${DATA_DIRECTORY:-/data}
invitation=${INVITATION:-/invitation}/line
if [ ! -e "$data/node/node.toml" ]; then
    if [ "$FOUND" = yes ] && [ "${POD_NAME##*-}" = 0 ]; then
        # A mesh that was not finished has nobody in it yet.
        [ -e "$data/shoal/node0/node.toml" ] || rm -rf "$data/shoal"
        [ -e "$data/shoal" ] ||
            shoal init "$data/shoal" --nodes 1 --host "$ADVERTISE" --port 7400 --data "$DATA" >/dev/null
        mv "$data/shoal/node0" "$data/node"
    elif [ -e "$invitation" ]; then
        shoal join --dir "$data/node" --token "$(cat "$invitation")" --no-start --data "$DATA" \
            --listen 0.0.0.0:7400 --advertise "$ADVERTISE:7400"
    else
        echo "waiting for an invitation, the line in the Secret shoal-invitation" >&2
        exit 1
    fi
fi
# Where Kubernetes has set a volume's group anew, it let the group read the key as well.
chmod 600 "$data/node/identity.key"
