#!/usr/bin/env bash
# Makes what is missing in secrets/ and writes .env; never changes a secret that is there. `./make-secrets.sh FOLDER`
# makes both in another folder.
set -euo pipefail
cd "${1:-$(dirname "$0")}"
umask 077
mkdir -p secrets

make() { # NAME COMMAND…
    if [ ! -s "secrets/$1" ]; then "${@:2}" >"secrets/$1"; fi
}
line_of() { # USER: as libpq reads it
    printf '*:*:*:%s:%s\n' "$1" "$(cat "secrets/$2.password")"
}

for name in admin owner loader watch bi pages cases case_token grafana; do make "$name.password" openssl rand -hex 24; done
make owner.pgpass line_of voc_owner owner
make loader.pgpass line_of loader loader
make watch.pgpass line_of watch watch
make pages.pgpass line_of pages pages
make cases.pgpass line_of cases cases
# Alertmanager shows what the receiver of cases knows; the latter refuses a file that others may read.
make case_token.key cat secrets/case_token.password
make web_session.key openssl rand -hex 32
make pseudonym.key openssl rand -hex 32
# A Fernet key: 32 bytes, URL-safe base64.
make dead_letter.key sh -c "openssl rand -base64 32 | tr '+/' '-_'"

# Images with users of their own read the passwords; the folder keeps everybody else on this host out.
chmod 700 secrets
chmod 644 secrets/*.password

user=$(id -u)
if [ "$user" = 0 ]; then
    # Containers don't run as root: they run as the image's user, who then owns these files.
    user=10001
    chown "$user" secrets/*.pgpass secrets/*.key
fi
touch .env
grep -v '^VOCBEAM_UID=' .env >.env.new || true
echo "VOCBEAM_UID=$user" >>.env.new
mv .env.new .env
echo "secrets/ is complete; keep a copy of secrets/pseudonym.key elsewhere: without it the warehouse takes no more events"
