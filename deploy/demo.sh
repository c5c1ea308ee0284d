#!/usr/bin/env bash
# The main job for real, on this machine alone: a Kafka broker, events, the pipeline, the books, the report.
set -euo pipefail
cd "$(dirname "$0")/.."

home=${VOCBEAM_DEMO_HOME:-.vocbeam/demo}
data=${VOCBEAM_DATA:-../shared/data}
customers=${VOCBEAM_DEMO_CUSTOMERS:-2000}
# The demo works on its own Kafka and warehouse, whatever the environment says of others.
unset VOCBEAM_WAREHOUSE VOCBEAM_REGISTRY VOCBEAM_TOPIC_PREFIX VOCBEAM_CONSUMER_CONFIG
export VOCBEAM_HOME=$home VOCBEAM_GOVERNANCE=schemas/examples/retailer.yaml
started=$SECONDS

say() { printf '\n\033[1m[%3ds] %s\033[0m\n' "$((SECONDS - started))" "$*"; }

say "Governance: is every stage owned, every department measured?"
vocbeam check

say "Broker: a real Apache Kafka on loopback (the first time its jars are fetched and checked)"
vocbeam broker start --port 0
trap 'say "Stopping the broker; its data stays in $home/broker"; vocbeam broker stop' EXIT
VOCBEAM_BOOTSTRAP=$(vocbeam broker status --json | python -c 'import json, sys; print(json.load(sys.stdin)["bootstrap"])')
export VOCBEAM_BOOTSTRAP

say "Events: a simulated retailer with $customers customers, whose truth is written beside them"
vocbeam simulate --out "$home/simulated" --customers "$customers" --days 60 --seed 7 --start 2018-07-03
vocbeam produce --events "$home/simulated/events.jsonl"

if [ -d "$data/olist" ]; then
    say "Events: real orders, reviews and payments of a Brazilian marketplace ($data/olist)"
    vocbeam produce examples/mappings/olist.yaml --data "$data"
else
    say "No real data at $data (VOCBEAM_DATA names its folder): going on with the simulated events alone"
fi

say "Pipeline: Kafka to warehouse, until caught up"
vocbeam run --until-caught-up

say "Books: does every offset have its row, and every row its place in the measures?"
vocbeam reconcile

say "Status"
vocbeam status

say "Report"
vocbeam report --html "$home/report.html"

cat <<EOF

Where to look next
  $home/report.html      the report as one page: open it in a browser
  $home/warehouse.db     the warehouse: sqlite3 $home/warehouse.db 'SELECT * FROM metric_by_month LIMIT 20'
  $home/simulated/       the simulated events and the truth that was planted in them
  vocbeam web --home $home    the pages of stages and departments: open the address that it prints. To raise flags
                         there, start the broker again: vocbeam broker start --home $home
The events are of 2016 to 2018, older than the governance file lets them be kept (retention.event): with this home, vocbeam
retain deletes them, and the figures stay.
Run it again and every event is recognised: the duplicates go up, no figure changes.
EOF
