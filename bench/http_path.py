"""The overhead of HTTP: `python -m handler serve` against `Engine.generate`.

    make bench      or      python bench/http_path.py [--pairs 300]

Requests to the server over one connection alternate with the engine in this process, both with the
packed demo model and the same prompt. The difference of the medians is the overhead of HTTP, event,
dialect and decoding thread. Writes bench/results/http_path.json.
"""

import argparse
import http.client
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import ROOT, save_results
from bench.serve import server
from gpt2core import Engine
from gpt2core.pack import pack

PROMPT, NEW_TOKENS = "Once upon a time", 20
BODY = json.dumps({"prompt": PROMPT, "max_new_tokens": NEW_TOKENS})
WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=300)
    args = parser.parse_args()
    over_http: list[float] = []
    of_engine: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "demo"
        pack(ROOT / "models" / "demo", model)
        engine = Engine.open(model)
        with server(model) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            for _ in range(WARM_UP + args.pairs):
                began = perf_counter()
                connection.request("POST", "/generate", BODY, {"Content-Type": "application/json"})
                reply = json.loads(connection.getresponse().read())
                between = perf_counter()
                text = engine.generate(PROMPT, max_new_tokens=NEW_TOKENS).text
                of_engine.append(1000 * (perf_counter() - between))
                over_http.append(1000 * (between - began))
                assert reply["generated_text"] == text
            connection.close()
    report = {
        "http_p50_ms": round(median(over_http[WARM_UP:]), 2),
        "engine_p50_ms": round(median(of_engine[WARM_UP:]), 2),
    }
    report["difference_ms"] = round(report["http_p50_ms"] - report["engine_p50_ms"], 2)
    print(report)
    save_results("http_path", report)


if __name__ == "__main__":
    main()
