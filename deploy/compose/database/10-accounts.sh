#!/usr/bin/env bash
# Run once, by the database's image, when its volume is empty: the owner, the database, and who may log in.
set -euo pipefail
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username=postgres <<'SQL'
\set owner `cat /run/secrets/owner.password`
\set loader `cat /run/secrets/loader.password`
\set watch `cat /run/secrets/watch.password`
\set bi `cat /run/secrets/bi.password`
\set pages `cat /run/secrets/pages.password`
\set cases `cat /run/secrets/cases.password`
CREATE ROLE voc_owner LOGIN CREATEROLE PASSWORD :'owner';
CREATE ROLE loader LOGIN PASSWORD :'loader';
CREATE ROLE watch LOGIN PASSWORD :'watch';
CREATE ROLE bi LOGIN PASSWORD :'bi';
CREATE ROLE pages LOGIN PASSWORD :'pages';
CREATE ROLE cases LOGIN PASSWORD :'cases';
CREATE DATABASE voc OWNER voc_owner;
REVOKE ALL ON DATABASE voc FROM PUBLIC;
SQL
