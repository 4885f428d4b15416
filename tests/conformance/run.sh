#!/usr/bin/env bash
# Runs the Autobahn|Testsuite against `aldis echo` and is strict about it: whatever is not plainly
# OK (or informational, where the suite has no opinion) fails.
#
#   tests/conformance/run.sh [--deflate] [CASE ...]
#
# --deflate  the server agrees to compression: all 517 cases must be OK
# CASE       ids or patterns, as 1.* 9.1.6 ; without any, all of 1.* to 13.*. But without --deflate
#            only one of each group of the compression cases (12.*, 13.*), which must read
#            UNIMPLEMENTED.
#
# Environment
#   URL            a server that runs already; else the release binary is built and started
#   ALDIS          the binary to start instead of building one
#   OUTDIR         folder of the reports (target/conformance): index.html, summary.json, ...
#   AUTOBAHN_DIR   where install.sh put the suite; it is installed when it is not there
#   LENIENT=1      lets NON-STRICT and blemishes of the closing pass
#   RETRIES=N      runs failing cases again, up to N times (0); what passes then is FLAKY
#   JOBS=N         clients that share the compression cases (one per processor)
#   TIMEOUT=SECS   for the whole run of the client (1800)
#   CLOSE_WAIT=S   how long the client waits for close frame and end of stream (1, the suite's own)
#
# Exit status: 0 nothing failed; 1 something did, or was not run; 2 the suite could not run.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export AUTOBAHN_DIR=${AUTOBAHN_DIR:-${TMPDIR:-/tmp}/autobahn-testsuite}
export DEFLATE=
[ "${1:-}" != --deflate ] || { DEFLATE=1 && shift; }
OUTDIR=${OUTDIR:-${CARGO_TARGET_DIR:-$root/target}/conformance${DEFLATE:+-deflate}}
[ -x "$AUTOBAHN_DIR/venv/bin/wstest" ] || "$root/tests/conformance/install.sh" "$AUTOBAHN_DIR"

server=
stop_server() { [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null || true; }
trap stop_server EXIT

start_server() { # prints the address that the server says it listens on
  if [ -z "${ALDIS:-}" ]; then
    (cd "$root" && cargo build --release --bin aldis >&2)
    ALDIS=${CARGO_TARGET_DIR:-$root/target}/release/aldis
  fi
  mkdir -p "$OUTDIR"
  "$ALDIS" echo --listen 127.0.0.1:0 ${DEFLATE:+--deflate} >"$OUTDIR/server.log" 2>&1 &
  server=$!
  for _ in $(seq 100); do
    address=$(sed -n 's/^listening on //p' "$OUTDIR/server.log")
    [ -z "$address" ] || { URL=ws://$address; return 0; }
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  echo "run.sh: the server did not start:" >&2
  cat "$OUTDIR/server.log" >&2
  exit 2
}
[ -n "${URL:-}" ] || start_server

"${PYTHON3:-python3}" - "$URL" "$OUTDIR" "$@" <<'PY'
import collections, fnmatch, json, os, re, signal, subprocess, sys, time

url, outdir, wanted = sys.argv[1], os.path.abspath(sys.argv[2]), sys.argv[3:]
env = os.environ.get
home = os.environ["AUTOBAHN_DIR"]
strict = env("LENIENT", "") in ("", "0")
deflate = env("DEFLATE", "") != ""
retries = int(env("RETRIES", "0"))
jobs = max(1, int(env("JOBS") or os.cpu_count() or 1))
limit, close_wait = float(env("TIMEOUT", "1800")), float(env("CLOSE_WAIT", "1"))
agent = "aldis"

def stop(msg):
    print("run.sh: " + msg, file=sys.stderr)
    sys.exit(2)

def words(s):
    return [w for w in re.split(r"[\s,]+", s) if w]

def key(case):
    return [int(x) for x in case.split(".")]

# every case id, from the installed suite itself
ids = subprocess.run(
    [home + "/venv/bin/python", "-W", "ignore", "-c",
     "from autobahntestsuite.case import Cases\n"
     "print(' '.join('.'.join(c.__name__[4:].split('_')) for c in Cases))"],
    stdout=subprocess.PIPE, universal_newlines=True)
if ids.returncode:
    stop("cannot list the cases of the installed suite")
every = sorted(ids.stdout.split(), key=key)

patterns = words(" ".join(wanted)) or ["*"]
for p in patterns:
    if not any(fnmatch.fnmatchcase(c, p) for c in every):
        stop("no case matches %r" % p)
def chosen(case):
    if wanted or deflate:
        return any(fnmatch.fnmatchcase(case, p) for p in patterns)
    # the 18 cases of a compression group differ in size and number only: where none is compressed,
    # the first stands for all
    return key(case)[0] < 12 or key(case)[-1] == 1
cases = [c for c in every if chosen(c)]
if not cases:
    stop("no cases left to run")

os.makedirs(outdir, exist_ok=True)
for stale in ("index.json", "index.html", "summary.json", "wstest.log"):
    if os.path.exists(os.path.join(outdir, stale)):
        os.remove(os.path.join(outdir, stale))

def spec(some, where):
    server = {"agent": agent, "url": url}
    opts = {"closeHandshakeTimeout": close_wait, "serverConnectionDropTimeout": close_wait}
    return {"outdir": where, "servers": [server], "options": opts,
            "cases": some, "exclude-cases": [], "exclude-agent-cases": {}}

def fuzz(parts):
    """Runs one client for each (cases, report folder) at once; returns results by case."""
    running = []
    for some, where in parts:
        os.makedirs(where, exist_ok=True)
        if os.path.exists(os.path.join(where, "index.json")):
            os.remove(os.path.join(where, "index.json"))
        with open(os.path.join(where, "spec.json"), "w") as f:
            json.dump(spec(some, where), f, indent=1)
        log = open(os.path.join(where, "wstest.log"), "a")
        # a group of its own, so that a timeout ends exactly this client
        proc = subprocess.Popen(
            [home + "/venv/bin/python", "-u", "-W", "ignore", home + "/venv/bin/wstest",
             "-m", "fuzzingclient", "-s", os.path.join(where, "spec.json")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            cwd=where, start_new_session=True)
        running.append((proc, where, log))
    end = time.monotonic() + limit
    found = {}
    try:
        for proc, where, log in running:
            try:
                proc.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                timeouts.append(where)
                proc.kill()
                proc.wait()
                with open(log.name, errors="replace") as f:
                    last = [x for x in f if x.startswith("Running test case")][-1:]
                print("run.sh: a client ran past %g s and was ended; last sign of life: %s"
                      % (limit, last[0].strip() if last else "none"), file=sys.stderr)
            log.close()
            try:
                with open(os.path.join(where, "index.json")) as f:
                    for some in json.load(f).values():
                        for case, v in some.items():
                            v["folder"] = os.path.relpath(where, outdir)
                            found[case] = v
            except (OSError, ValueError):
                pass
    finally:
        for proc, _, _ in running:
            if proc.poll() is None:
                proc.kill()
    return found

timeouts = []
signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
started = time.monotonic()
# The plain cases are full of one-second timers: they run alone, and first. The others are heavy,
# each more than the one before it, so the clients take turns in taking one.
plain = [c for c in cases if key(c)[0] < 12]
heavy = [c for c in cases if key(c)[0] >= 12]
results = fuzz([(plain, outdir)]) if plain else {}
parts = [(heavy[n::jobs], os.path.join(outdir, "client%d" % (n + 1))) for n in range(jobs)]
results.update(fuzz([part for part in parts if part[0]]))

SOFT = {"WRONG CODE", "FAILED BY CLIENT"}   # amber in the suite's own report
def verdict(case):
    """'' when the case passed, else why it did not"""
    v = results.get(case)
    if v is None:
        return "NOT RUN"
    b, c = v["behavior"], v["behaviorClose"]
    if b not in ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"):
        return b
    if key(case)[0] >= 12 and not deflate:
        return "" if b == "UNIMPLEMENTED" else "expected UNIMPLEMENTED, got " + b
    if b == "UNIMPLEMENTED":
        return b
    if c not in ("OK", "INFORMATIONAL") and (strict or c not in SOFT):
        return "close: " + c
    if strict and b == "NON-STRICT":
        return b
    return ""

def detail(case):
    v = results[case]
    try:
        with open(os.path.join(outdir, v["folder"], v["reportfile"])) as f:
            d = json.load(f)
        return "%s | %s (close code %s%s)" % (
            d["result"], d["resultClose"], d["remoteCloseCode"],
            ", %r" % d["remoteCloseReason"] if d["remoteCloseReason"] else "")
    except (OSError, ValueError, KeyError):
        return "behavior %(behavior)s, close %(behaviorClose)s" % v

flaky = []
for n in range(retries):
    bad = [c for c in cases if verdict(c) not in ("", "UNIMPLEMENTED", "NON-STRICT")]
    if not bad:
        break
    print("retry %d: %d cases" % (n + 1, len(bad)))
    before = {c: verdict(c) for c in bad}
    results.update(fuzz([(bad, os.path.join(outdir, "retry%d" % (n + 1)))]))
    flaky += [(c, before[c]) for c in bad if not verdict(c)]
wall = time.monotonic() - started

failing = [c for c in cases if verdict(c)]
count = collections.Counter(results[c]["behavior"] if c in results else "NOT RUN" for c in cases)
close = collections.Counter(results[c]["behaviorClose"] for c in cases if c in results)
soft = [c for c in cases if c in results and not verdict(c) and results[c]["behavior"] != "UNIMPLEMENTED"
        and (results[c]["behavior"] == "NON-STRICT" or results[c]["behaviorClose"] in SOFT)]

print("server    %s" % url)
print("cases     %d in %.1f s" % (len(cases), wall))
for b in ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED"):
    print("%-13s %4d" % (b, count.pop(b, 0)))
for b, n in sorted(count.items()):
    print("%-13s %4d" % (b, n))
print("closing       " + ", ".join("%s %d" % kv for kv in sorted(close.items())))
if soft:
    print("not strict    " + " ".join(soft))
for c, why in flaky:
    print("FLAKY  %-8s %s, passed when run again" % (c, why))
for c in failing:
    if c in results:
        print("FAIL   %-8s %s: %s" % (c, verdict(c), detail(c)))
missing = [c for c in failing if c not in results]
if missing:
    print("FAIL   NOT RUN  %d cases (%s): %s" % (
        len(missing), "a client was ended at its time limit" if timeouts
        else "the server was gone before them", " ".join(missing)))
print("report    %s" % os.path.join(outdir, "index.html"))
if heavy:
    print("          %s" % os.path.join(outdir, "client*", "index.html"))

with open(os.path.join(outdir, "summary.json"), "w") as f:
    json.dump({"url": url, "wall_s": round(wall, 1), "cases": len(cases),
               "behavior": dict(collections.Counter(
                   results[c]["behavior"] if c in results else "NOT RUN" for c in cases)),
               "behavior_close": dict(close), "not_strict": soft,
               "flaky": dict(flaky), "failing": {c: verdict(c) for c in failing},
               "timed_out": bool(timeouts)}, f, indent=1, sort_keys=True)

if not results:
    log = os.path.join(outdir, "wstest.log")
    tail = open(log).read()[-1500:] if os.path.exists(log) else ""
    print("run.sh: no case ran at all; the end of %s:\n%s" % (log, tail), file=sys.stderr)
    sys.exit(1 if timeouts or "Connection to" in tail else 2)
sys.exit(1 if failing else 0)
PY
