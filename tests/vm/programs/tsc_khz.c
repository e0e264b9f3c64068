// SPDX-License-Identifier: GPL-2.0-only
/*
 * Prints the frequency of this machine's time stamp counter in kHz. An emulated machine has the
 * same counter, and on a busy host its kernel may take it for several times as fast as it is.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct reading {
    uint64_t ns, ticks;
};

static uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Of many attempts the one that took the shortest: it was not interrupted. */
static struct reading read_both(void) {
    struct reading best = {0, 0};
    uint64_t shortest = UINT64_MAX;
    for (int i = 0; i < 1000; i++) {
        uint64_t before = now_ns();
        uint64_t ticks = __rdtsc();
        uint64_t took = now_ns() - before;
        if (took < shortest) {
            shortest = took;
            best.ns = before + took / 2;
            best.ticks = ticks;
        }
    }
    return best;
}

int main(void) {
    const struct timespec wait = {0, 50 * 1000 * 1000};
    struct reading first = read_both();
    nanosleep(&wait, NULL);
    struct reading second = read_both();
    printf("%llu\n",
           (unsigned long long)((second.ticks - first.ticks) * 1000000u / (second.ns - first.ns)));
    return 0;
}
