#!/usr/bin/env bash
# What the browser test needs and the tree does not carry: Chromium, from the distribution, and two
# packages from npm, into target/browser. Running it again is free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PACKAGES=(playwright-core@1.65.1 axe-core@4.14.1)

missing=()
command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

folder=target/browser
if [ "$(cat "$folder/.installed" 2>/dev/null || true)" != "${PACKAGES[*]}" ]; then
    mkdir -p "$folder"
    echo '{"private": true}' >"$folder/package.json"
    npm install --prefix "$folder" --no-audit --no-fund --no-save --silent "${PACKAGES[@]}"
    echo "${PACKAGES[*]}" >"$folder/.installed"
fi
