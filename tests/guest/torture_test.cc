// SPDX-License-Identifier: GPL-2.0-only
// `make torture`: the daemon is killed at random moments, any number of times, under a guest that
// looks at its rings only when it is interrupted. Hidden, since it takes hours. $TORTURE_KILLS: how
// many, $TORTURE_SECONDS: but for no longer than that. The report goes to standard output.
#include "e2e.h"

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sched.h>

namespace vql::guest {
namespace {

using clock = std::chrono::steady_clock;

constexpr uint64_t disk_bytes = 16 << 20;
constexpr uint64_t kills_in_a_row =
    50; // before the disk is compared, and another kind has its turn

// 2 s; more on a slow machine ($VQL_SLOWER), as all that waits.
milliseconds longest_stall() {
    return default_timeout() / 30;
}

uint64_t number_from(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}

struct kind {
    unsigned depth;
    bool event_idx;
    bool call_last; // SET_VRING_CALL after SET_VRING_ENABLE; vhost-user only
};

struct tally {
    uint64_t kills = 0;
    uint64_t busy_kills = 0; // with requests in flight, as the driver saw it
    uint64_t requests = 0;
    uint64_t stalls = 0;
    clock::duration longest{}; // from when the VMM is back until all in flight is answered
    clock::duration away{};    // the longest from a kill until then
};

std::vector<kind> kinds() {
    std::vector<kind> all;
    for (unsigned depth : {1U, 32U}) {
        for (bool event_idx : {false, true}) {
            for (bool call_last : {false, true}) {
                if (!call_last || !vdpa_world()) {
                    all.push_back({depth, event_idx, call_last});
                }
            }
        }
    }
    return all;
}

long long ms(clock::duration d) {
    return std::chrono::duration_cast<milliseconds>(d).count();
}

// Up to @most kills of one daemon after another, under one guest.
void torture(const kind& k, uint64_t most, clock::time_point end, uint64_t seed, tally& t) {
    test_storage storage(storage_folder());
    storage.add("t", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t"));
    guest_options options;
    options.blk.depth = k.depth;
    options.blk.queue_size = 64;
    options.blk.event_idx = k.event_idx;
    options.blk.interrupts = options.blk.interrupts_only = true;
    options.vhost.call_last = k.call_last;
    test_guest guest(daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    run_options mix;
    mix.max_bytes = 32 << 10;
    model_run run(guest.driver, model, seed, mix);
    random_source random(seed + 1);
    for (uint64_t i = 0; i < most && clock::now() < end; i++) {
        // Some at once, while the queue is just taken over; the others anywhere in the load.
        auto moment =
            clock::now() +
            std::chrono::microseconds(random.chance(20) ? random.below(100) : random.below(4000));
        run.start(uint64_t{1} << 40);
        do {
            run.step();
            sched_yield(); // to the daemon
        } while (clock::now() < moment);
        auto killed = clock::now();
        daemon.kill();
        t.kills++;
        t.busy_kills += guest.driver.in_flight() != 0 ? 1 : 0;
        daemon.start();
        auto back = clock::now();
        guest.daemon_is_back();
        // Wrong data, an error, an answer to nothing, or none at all: each throws.
        run.drain();
        auto answered = clock::now();
        t.longest = std::max(t.longest, answered - back);
        t.away = std::max(t.away, answered - killed);
        t.stalls += answered - back > longest_stall() ? 1 : 0;
    }
    run.run(100);
    t.requests += run.counts().total();
    CHECK(compare_backing(model, {storage.part("t")}) == disk_bytes);
    leave_for_case(model, storage.part("t"));
}

void report(const std::vector<kind>& all, const std::vector<tally>& tallies) {
    tally sum;
    std::printf("depth  event_idx  call       kills  with I/O   requests  stalls  longest  away\n");
    for (size_t i = 0; i < all.size(); i++) {
        const tally& t = tallies[i];
        std::printf("%5u  %9s  %-9s %6llu  %8llu  %9llu  %6llu  %4lld ms  %lld ms\n", all[i].depth,
                    all[i].event_idx ? "yes" : "no",
                    vdpa_world()       ? "vDPA"
                    : all[i].call_last ? "last"
                                       : "first",
                    static_cast<unsigned long long>(t.kills),
                    static_cast<unsigned long long>(t.busy_kills),
                    static_cast<unsigned long long>(t.requests),
                    static_cast<unsigned long long>(t.stalls), ms(t.longest), ms(t.away));
        sum.kills += t.kills;
        sum.busy_kills += t.busy_kills;
        sum.requests += t.requests;
        sum.stalls += t.stalls;
        sum.longest = std::max(sum.longest, t.longest);
    }
    std::printf("torture: %llu kills over %s, %llu of them with requests in flight, %llu requests, "
                "%llu stalls of more than %lld ms, the longest %lld ms\n",
                static_cast<unsigned long long>(sum.kills),
                vdpa_world() ? ("vDPA, lane " + lane()).c_str() : "vhost-user",
                static_cast<unsigned long long>(sum.busy_kills),
                static_cast<unsigned long long>(sum.requests),
                static_cast<unsigned long long>(sum.stalls), ms(longest_stall()), ms(sum.longest));
    std::fflush(stdout);
}

} // namespace

TEST_CASE("a daemon that is killed at random moments, thousands of times", "[.torture]") {
    uint64_t kills = number_from("TORTURE_KILLS", 10000);
    auto end = clock::now() + std::chrono::seconds(number_from("TORTURE_SECONDS", 6 * 3600));
    std::vector<kind> all = kinds();
    std::vector<tally> tallies(all.size());
    uint64_t seed = test_seed(900);
    uint64_t done = 0;
    try {
        for (size_t turn = 0; done < kills && clock::now() < end; turn++) {
            tally& t = tallies[turn % all.size()];
            uint64_t before = t.kills;
            torture(all[turn % all.size()], std::min(kills_in_a_row, kills - done), end,
                    seed + 2 * turn, t);
            done += t.kills - before;
        }
    } catch (const std::exception&) {
        report(all, tallies);
        throw;
    }
    report(all, tallies);
    for (const tally& t : tallies) {
        CHECK(t.stalls == 0);
    }
    CHECK(done > 0);
}

} // namespace vql::guest
