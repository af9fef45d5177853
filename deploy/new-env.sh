#!/bin/sh
# Write .env with new secrets, and a self-signed certificate in tls/, beside this script. Files that exist are kept.
set -eu
cd "$(dirname "$0")"
umask 077

secret() { openssl rand -hex 24; }

if [ ! -e .env ]; then
    sed -e "s/^API_KEYS=$/API_KEYS=$(secret)/" -e "s/^GRAFANA_PW=$/GRAFANA_PW=$(secret)/" .env.example >.env
    echo "wrote $(pwd)/.env: API_KEYS is the key of clients, GRAFANA_PW the password of Grafana's admin"
fi
if [ ! -e tls/tls.crt ]; then
    mkdir -p tls
    openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=${1:-localhost}" \
        -addext "subjectAltName=DNS:${1:-localhost},IP:127.0.0.1" -keyout tls/tls.key -out tls/tls.crt 2>/dev/null
    echo "wrote $(pwd)/tls: a self-signed certificate for ${1:-localhost}; put a real one in its place"
fi
