#!/usr/bin/env bash
# Compiles the package into dist/, and its modules into web/sdk, from where the edge serves them to
# its page. The compiler comes from npm into target/typescript.
#
#   ./build.sh           builds both
#   ./build.sh --check   builds dist/, and fails when web/sdk is not what comes out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PACKAGE=typescript@7.0.2

missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

folder=target/typescript
if [ "$(cat "$folder/.installed" 2>/dev/null || true)" != "$PACKAGE" ]; then
    mkdir -p "$folder"
    echo '{"private": true}' >"$folder/package.json"
    npm install --prefix "$folder" --no-audit --no-fund --no-save --silent "$PACKAGE"
    echo "$PACKAGE" >"$folder/.installed"
fi

rm -rf clients/typescript/dist
"$folder/node_modules/.bin/tsc" -p clients/typescript
if [ "${1:-}" = --check ]; then
    if ! diff -r --exclude='*.d.ts' clients/typescript/dist web/sdk; then
        echo "web/sdk is not what clients/typescript compiles to: run clients/typescript/build.sh"
        exit 1
    fi
    exit 0
fi
rm -rf web/sdk
mkdir web/sdk
cp clients/typescript/dist/*.js web/sdk/
