#!/usr/bin/env bash
# Test the compiled kernels with sanitizers and on other processors: make kernels-test.
#
# AddressSanitizer and UndefinedBehaviorSanitizer run on the C driver and under Python,
# ThreadSanitizer on the driver, and a fuzz test. QEMU emulates other processors. It does not support
# AVX-512, which is tested if this machine has it; the driver reports if it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
count=${COUNT:-300}
out=build/kernels
mkdir -p $out
driver=tests/gpt2core/kernels/driver.c
flags="-std=gnu11 -O2 -ffp-contract=off -Wall -Wextra -Werror"
link="-pthread -lm"

cc $flags $driver -o $out/driver $link
cc $flags -O1 -g1 -fno-var-tracking -fsanitize=address,undefined -fno-sanitize-recover=all $driver -o $out/driver-address $link
cc $flags -O1 -g1 -fno-var-tracking -fsanitize=thread $driver -o $out/driver-thread $link
hashes() { "$@" hash | cut -d' ' -f2- | sort -u; }
$out/driver hash >$out/hashes
expected=$(hashes $out/driver)
[ "$(wc -l <<<"$expected")" = 17 ] || { echo "the results of instruction sets differ:"; sort -k2 $out/hashes; exit 1; }
for built in driver driver-address; do
    $out/$built threads >/dev/null
    $out/$built fuzz "${SEED:-1}" "$count" >/dev/null || { $out/$built fuzz "${SEED:-1}" "$count"; exit 1; }
done
[ "$(hashes $out/driver-address)" = "$expected" ] || { echo "compiler optimization changes the results"; exit 1; }
$out/driver-thread threads >/dev/null
$out/driver-thread fuzz "${SEED:-1}" $((count / 10)) >/dev/null
echo "driver: $(cut -d' ' -f1 $out/hashes | sort -u | xargs) have the same results; fuzz tests and sanitizers pass"

# Under Python: in a copy of the project, whose own kernels are not replaced.
copy=$out/python
rm -rf $copy
mkdir -p $copy/scripts
cp -r gpt2core handler tests models pyproject.toml $copy/
cp scripts/build_kernels.py $copy/scripts/
(
    cd $copy
    CC="${PWD}/cc-sanitized"
    printf '#!/bin/sh\nexec cc -fsanitize=address,undefined -fno-sanitize-recover=all "$@"\n' >"$CC"
    chmod +x "$CC"
    export CC
    "$OLDPWD/$python" scripts/build_kernels.py
    ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
        "$OLDPWD/$python" -m pytest -q -p no:cacheprovider tests/gpt2core/kernels tests/gpt2core/test_model.py
)
rm -rf $copy

if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64-static >/dev/null; then
    aarch64-linux-gnu-gcc -static $flags $driver -o $out/driver-aarch64 $link
    [ "$(hashes qemu-aarch64-static $out/driver-aarch64)" = "$expected" ] || { echo "the results of NEON differ"; exit 1; }
    qemu-aarch64-static $out/driver-aarch64 fuzz 1 30 >/dev/null
    echo "neon: the same results as x86"
else
    echo "neon is skipped: it needs a cross compiler and QEMU for AArch64"
fi
if [ "$(uname -m)" = x86_64 ] && command -v qemu-x86_64-static >/dev/null; then
    cc -static $flags $driver -o $out/driver-static $link
    [ "$(hashes qemu-x86_64-static -cpu Haswell $out/driver-static 2>/dev/null)" = "$expected" ] || { echo "the results of Haswell differ"; exit 1; }
    shown=$(qemu-x86_64-static -cpu Nehalem $python -m gpt2core info 2>/dev/null || true)
    case "$shown" in *"NumPy: the native kernels are not supported"*) echo "Haswell: the same results; Nehalem: NumPy" ;; *) echo "Nehalem: $shown"; exit 1 ;; esac
fi
