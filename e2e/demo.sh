#!/usr/bin/env bash
# A small metering fleet on one machine, played by mosquitto's command-line clients: what a first user would try.
# Ends with the steps for going on by hand. Needs MQTT_BROKER_BIN, and mosquitto_pub and mosquitto_sub.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

home=$(mktemp -d)
mkdir "$home/manifests"
cp examples/*.yaml "$home/manifests/"

children=()
finish() {
    for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$home"
}
trap finish EXIT

fail() {
    echo "the demo failed: $*" >&2
    echo "the broker's log ends so:" >&2
    tail -n 20 "$home/log" >&2
    exit 1
}

# Waits until a file holds a text, 10 s at most.
until_told() {
    for _ in $(seq 200); do
        if grep -qF -- "$2" "$1" 2>/dev/null; then return; fi
        sleep 0.05
    done
    fail "waited 10 s for '$2'"
}

trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
indent() { sed 's/^/    /'; }

# meter ID COMMAND…: a meter's publish. An answer that is a refusal is told on standard error.
meter() {
    local id=$1
    shift
    mosquitto_pub -h "$host" -p "$port" -V mqttv5 -q 1 -i "$id" -u fleet -P demo-only-fleet "$@" 2>&1
}

# listen NAME ARGUMENTS…: a subscriber whose messages go to $home/NAME.
listen() {
    local name=$1
    shift
    stdbuf -oL mosquitto_sub -h "$host" -p "$port" -d -F '>> %t  %p' -q 1 "$@" > "$home/$name" 2>&1 &
    children+=($!)
    until_told "$home/$name" Subscribed
}

heard() { sed -n 's/^>> //p' "$home/$1"; }
records() { "$MQTT_BROKER_BIN" records "$@" --admin "$admin"; }

step "1. A broker starts on the manifests in examples/"
"$MQTT_BROKER_BIN" standalone --manifests "$home/manifests" --data "$home/data" \
    --mqtt 127.0.0.1:0 --admin 127.0.0.1:0 > "$home/ready" 2> "$home/log" &
children+=($!)
until_told "$home/ready" ready
mqtt=$(sed 's/.*mqtt=\([^ ]*\).*/\1/' "$home/ready")
admin=$(sed 's/.*admin=\([^ ]*\).*/\1/' "$home/ready")
host=${mqtt%:*} port=${mqtt##*:}
indent < "$home/ready"

step "2. Three meters send readings; the operations desk listens to readings/# and orderMsg2mq-readings/#"
listen desk -i desk -u ops -P demo-only-ops -t 'readings/#' -t 'orderMsg2mq-readings/#'
for number in 1 2 3; do
    meter "meter-$number" -t "readings/meter-$number/power" -m "{\"kW\": $number.4}"
done
for value in 1001 1002 1003; do
    meter meter-1 -t orderMsg2mq-readings/meter-1/energy -m "{\"kWh\": $value}"
done
until_told "$home/desk" 1003
heard desk | indent

step "3. The readings were acknowledged only once they were stored: the ordered ones, by meter, in its order"
records read orderMsg2mq-readings > "$home/records"
[ "$(wc -l < "$home/records")" = 3 ] || fail "not three records: $(cat "$home/records")"
indent < "$home/records"

step "4. The cloud sends meter-2 a command, as a record on mq2mqtt"
listen meter-2 -i meter-2 -u fleet -P demo-only-fleet -t commands/meter-2
records append mq2mqtt --header mqttTopic=commands/meter-2 --header qoslevel=1 --value '{"relay": "off"}'
until_told "$home/meter-2" relay
heard meter-2 | indent

step "5. meter-3 poses as meter-1, and is refused: its grant says readings/\${clientId}/#"
meter meter-3 -t readings/meter-1/power -m '{"kW": 0}' > "$home/refused" || true
grep -qi 'not authorized' "$home/refused" || fail "it was not refused: $(cat "$home/refused")"
indent < "$home/refused"
until_told "$home/log" meter-3
grep -F meter-3 "$home/log" | grep WARN | indent

step "6. A grant for alarms is added while all are connected"
meter meter-3 -t alarms/meter-3 -m 'cover opened' > "$home/refused" || true
grep -qi 'not authorized' "$home/refused" || fail "it was not refused: $(cat "$home/refused")"
echo "before: $(cat "$home/refused")" | indent
cat > "$home/manifests/alarms.yaml" <<'YAML'
apiVersion: mqtt.dms.dev/v1alpha1
kind: TopicGrant
metadata: {name: fleet-alarms}
spec:
  instanceRef: {name: meters}
  userRef: {name: fleet}
  rules:
  - {action: pub, filter: "alarms/${clientId}"}
---
apiVersion: mqtt.dms.dev/v1alpha1
kind: TopicGrant
metadata: {name: ops-alarms}
spec:
  instanceRef: {name: meters}
  userRef: {name: ops}
  rules:
  - {action: sub, filter: "alarms/#"}
YAML
for _ in $(seq 100); do
    answer=$(meter meter-3 -t alarms/meter-3 -m 'probing the new grant' || true)
    if [ -z "$answer" ]; then break; fi
    sleep 0.05
done
[ -z "$answer" ] || fail "the grant has no effect: $answer"
listen alarms -i alarms -u ops -P demo-only-ops -t 'alarms/#'
meter meter-3 -t alarms/meter-3 -m 'cover opened'
until_told "$home/alarms" opened
echo "after:  $(heard alarms)" | indent

step "Go on by hand"
indent <<HAND
$MQTT_BROKER_BIN standalone --manifests examples --data /tmp/mqtt-data --mqtt 127.0.0.1:1883 --admin 127.0.0.1:9090
mosquitto_sub -u ops -P demo-only-ops -t 'readings/#' -v
mosquitto_pub -u fleet -P demo-only-fleet -i meter-1 -t readings/meter-1/power -m 4.2 -q 1
$MQTT_BROKER_BIN records read readings --follow --admin 127.0.0.1:9090
HAND
echo
echo "Edit examples/*.yaml while it runs: a change is in force within a second. README.md explains the rest."
