"""Asks Probity and the reference in turns, and prints a Markdown table of the medians. What is off by more than half a millisecond and a tenth is
named below it: on a busy machine that happens. Fails when certificates differ."""

import json
import os
import re
import statistics
import subprocess
import sys

ROUNDS = 21
PROBITY, ADDRESS, CA = os.environ["PROBITY"], os.environ["ADDRESS"], os.environ["CA"]
URL = "https://shop.test/large"


def output(*command, stdin=""):
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def probity(*arguments):
    """The second run of a process, as a prober does them: the first one also pays for code and memory that were never touched (a page fault each)."""
    ran = output(PROBITY, "probe", "-o", "json", "-c", "2", *arguments)
    item = json.loads(ran.stdout)["items"][-1]
    if item["outcome"] != "good":
        sys.exit(f"{arguments}: {item['reason']}: {item['message']}")
    return item


def phases(item):
    found = {}
    for phase in item["phases"]:
        found[phase["name"]] = found.get(phase["name"], 0) + phase["durationSeconds"] * 1e3
    return found


def http():
    item = probity("--resolve", f"shop.test:{ADDRESS}", "--cacert", CA, URL)
    own = phases(item)
    words = "time_namelookup time_connect time_appconnect time_pretransfer time_starttransfer time_total".split()
    form = " ".join("%{" + word + "}" for word in words)
    # The second transfer of a process here too: a connection and a whole handshake of its own.
    one = ["-s", "--http1.1", "--no-sessionid", "-H", "connection: close", "--resolve", f"shop.test:443:{ADDRESS}", "--cacert", CA, "-o", "/dev/null", URL]
    ran = output("curl", *one, "--next", "-w", form, *one)
    name, connect, app, _, start, total = (float(word) * 1e3 for word in ran.stdout.split())
    first_byte = own["request"] + own["first_byte"]
    return {
        ("HTTPS: connect", "curl -w"): (own["connect"], connect - name),
        ("HTTPS: TLS", "curl -w"): (own["tls"], app - connect),
        ("HTTPS: request and first byte", "curl -w"): (first_byte, start - app),
        ("HTTPS: transfer of 400 kB", "curl -w"): (own["transfer"], total - start),
        ("HTTPS: in all", "curl -w"): (item["durationSeconds"] * 1e3, total),
    }


def icmp():
    rtt = float(probity(f"ping://{ADDRESS}")["facts"]["icmp.rtt_mean_ns"]) / 1e6
    ping = re.search(r"time=([\d.]+) ms", output("ping", "-c", "1", ADDRESS).stdout)
    fping = re.search(r": ([\d.]+)", output("fping", "-C", "1", "-q", ADDRESS).stderr)
    return {("ICMP: round trip", "ping"): (rtt, float(ping[1])), ("ICMP: round trip", "fping"): (rtt, float(fping[1]))}


def dns():
    own = phases(probity(f"dns://{ADDRESS}/www.shop.test"))
    dig = re.search(r"Query time: (\d+) usec", output("dig", "-u", f"@{ADDRESS}", "www.shop.test").stdout)
    return {("DNS: query", "dig -u"): (sum(ms for name, ms in own.items() if name != "resolve"), int(dig[1]) / 1e3)}


def certificate():
    facts = probity("--resolve", f"shop.test:{ADDRESS}", "--cacert", CA, URL)["facts"]
    shown = output("openssl", "s_client", "-connect", f"{ADDRESS}:443", "-servername", "shop.test").stdout
    x509 = output("openssl", "x509", "-noout", "-serial", "-fingerprint", "-sha256", "-enddate", "-dateopt", "iso_8601", stdin=shown).stdout
    of = lambda pattern, text: (re.search(pattern, text) or ["", "?"])[1]
    end = output("date", "-u", "-d", of(r"notAfter=(.*)", x509), "+%s").stdout.strip()
    return [
        ("TLS: SHA-256 of the certificate", facts["tls.server.hash.sha256"], of(r"Fingerprint=(.*)", x509).replace(":", "").lower()),
        ("TLS: serial", facts["tls.server.serial_hex"].lstrip("0"), of(r"serial=(.*)", x509).lower().lstrip("0")),
        ("TLS: not after", facts["tls.server.not_after"], end),
        ("TLS: version", facts["tls.protocol.version"], of(r"(?:New, |Protocol *: )TLSv([\d.]+)", shown)),
        ("TLS: cipher", facts["tls.cipher"].replace("TLS13_", "TLS_"), of(r"Cipher is (\S+)", shown)),
    ]


def main():
    found = {}
    for _ in range(ROUNDS):
        for measure in (http, icmp, dns):
            for key, pair in measure().items():
                found.setdefault(key, []).append(pair)
    print(f"Medians of {ROUNDS} in turns; delay of the network: {os.environ['DELAY']}.\n")
    print("| What | Probity | Reference | by | Difference |\n|---|---|---|---|---|")
    off, wrong = [], []
    for (what, by), pairs in found.items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs))
        print(f"| {what} | {ours:.3f} ms | {theirs:.3f} ms | `{by}` | {ours - theirs:+.3f} ms |")
        if abs(ours - theirs) > max(0.5, theirs / 10):
            off.append(f"{what} ({by})")
    for what, ours, theirs in certificate():
        short = lambda text: text if len(text) < 40 else text[:16] + "..."
        print(f"| {what} | {short(ours)} | {short(theirs)} | `openssl s_client` | {'none' if ours == theirs else 'DIFFERENT'} |")
        if ours != theirs:
            wrong.append(what)
    if off:
        print("\noff: " + ", ".join(off))
    if wrong:
        sys.exit("different: " + ", ".join(wrong))


main()
