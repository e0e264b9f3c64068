// SPDX-License-Identifier: GPL-2.0-only
// Commands that a drive refuses for now: which are tried again, when, and how often.
#include "nvme_rig.h"

#include <catch2/generators/catch_generators.hpp>
#include <vqlane/limits.h>

using namespace vql;
using namespace vql::test;

namespace {

constexpr uint32_t dnr = 0x4000;
constexpr uint32_t for_now = nvme_model::for_now;
constexpr uint16_t no_delays[3] = {0, 0, 0};

// What one command's submissions were: at which times, and the answer to each.
struct attempts {
    nvme_rig& r;
    std::vector<uint64_t> at_ms;
    std::vector<uint32_t> answers; // to the first ones; those after are executed

    explicit attempts(nvme_rig& rig, std::vector<uint32_t> first)
        : r(rig), answers(std::move(first)) {
        r.model.inject = [this](const vql_nvme_sqe&) {
            at_ms.push_back(r.now / nvme_rig::ms);
            return at_ms.size() <= answers.size() ? answers[at_ms.size() - 1] : 0;
        };
    }
    ~attempts() { r.model.inject = nullptr; }
    attempts(const attempts&) = delete;
    attempts& operator=(const attempts&) = delete;
};

} // namespace

TEST_CASE("nvme: what is tried again, and after how long") {
    const uint16_t crdt[3] = {1, 7, 65535};
    // Aborted, interrupted, not ready, and a path in transition; but never what went well.
    for (const uint32_t code : {0x007u, 0x021u, 0x082u, 0x303u, 0x360u, 0x371u, 0x006u}) {
        CHECK(vql_nvme_retry_ms(code, 0, false, no_delays) == VQL_NVME_RETRY_MS);
        CHECK(vql_nvme_retry_ms(code, 1, false, no_delays) == 4 * VQL_NVME_RETRY_MS);
        CHECK(vql_nvme_retry_ms(code | dnr, 0, false, no_delays) < 0);
        CHECK(vql_nvme_retry_ms(code, VQL_NVME_RETRIES, false, no_delays) < 0);
    }
    CHECK(vql_nvme_retry_ms(0, 0, false, no_delays) < 0);
    // A bad block is a bad block, now or later.
    CHECK(vql_nvme_retry_ms(0x281, 0, false, no_delays) == 0);
    CHECK(vql_nvme_retry_ms(0x281 | dnr, 0, false, no_delays) < 0);
    // The drive's own delays, in 100 ms.
    CHECK(vql_nvme_retry_ms(0x021 | 1 << 11, 3, false, crdt) == 100);
    CHECK(vql_nvme_retry_ms(0x281 | 2 << 11, 0, false, crdt) == 700);
    CHECK(vql_nvme_retry_ms(0x021 | 3 << 11, 0, false, crdt) == VQL_NVME_RETRY_MOST_MS);
    // What we had aborted, whatever DNR says; but only that.
    CHECK(vql_nvme_retry_ms(0x007 | dnr, 0, true, no_delays) == VQL_NVME_RETRY_MS);
    CHECK(vql_nvme_retry_ms(0x281 | dnr, 0, true, no_delays) < 0);
    CHECK(vql_nvme_retry_ms(0x007 | dnr, VQL_NVME_RETRIES, true, no_delays) < 0);
    for (uint32_t n = 0; n < VQL_NVME_RETRIES; n++) {
        CHECK(vql_nvme_retry_ms(0x082, n, false, no_delays) >= 0);
        CHECK(vql_nvme_retry_ms(0x082, n, false, no_delays) <= VQL_NVME_RETRY_MOST_MS);
    }
}

TEST_CASE("nvme: a command that is refused for now is tried again, and its piece ends well") {
    nvme_rig r({.crdt = {1, 2, 3}});
    const std::vector<vql_seg> data = {{r.guest() + GENERATE(0, 1), 4096}}; // direct, and bounced
    const auto op = GENERATE(VQL_OP_READ, VQL_OP_WRITE, VQL_OP_WRITE_ZEROES, VQL_OP_DISCARD);
    std::memset(r.guest(), 0x5a, 8192);
    std::memset(r.model.block(7), 0xa5, 4096);
    attempts tries(r, {0x082 | for_now, 0x021 | 2 << 11 | for_now});
    CHECK(r.run_one(r.make(1, op, 7, 8, data)) == VQL_STATUS_OK);
    REQUIRE(tries.at_ms.size() == 3);
    CHECK(tries.at_ms[1] - tries.at_ms[0] >= VQL_NVME_RETRY_MS);
    CHECK(tries.at_ms[1] - tries.at_ms[0] <= VQL_NVME_RETRY_MS + 2);
    CHECK(tries.at_ms[2] - tries.at_ms[1] >= 200);
    CHECK(tries.at_ms[2] - tries.at_ms[1] <= 202);
    CHECK(r.where.errors == 0);
    const int want = op == VQL_OP_READ ? 0xa5 : op == VQL_OP_WRITE ? 0x5a : 0;
    for (uint64_t i = 0; i < 4096; i++) {
        REQUIRE(r.model.block(7)[i] == want);
        if (op == VQL_OP_READ)
            REQUIRE(static_cast<uint8_t*>(data[0].base)[i] == want);
    }
}

TEST_CASE("nvme: a flush, and the one behind a discard, are tried again") {
    nvme_rig r;
    attempts tries(r, {0, 0x082 | for_now});
    vql::piece p = r.make(1, VQL_OP_DISCARD, 0, 8);
    p.durable = true;
    CHECK(r.run_one(p) == VQL_STATUS_OK);
    CHECK(r.model.count().commands[VQL_NVME_DSM] == 1);
    CHECK(r.model.count().commands[VQL_NVME_FLUSH] == 2);
}

TEST_CASE("nvme: a command that is refused time and again fails, and its status is the drive's") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    attempts tries(r, std::vector<uint32_t>(100, 0x082 | for_now));
    CHECK(r.run_one(r.make(1, VQL_OP_READ, 0, 8, data)) == VQL_STATUS_IOERR);
    CHECK(tries.at_ms.size() == 1 + VQL_NVME_RETRIES);
    CHECK(tries.at_ms.back() - tries.at_ms.front() < 4000);
    CHECK(r.where.errors == 1);
    tries.answers.assign(100, 0x001 | for_now); // an opcode that it does not know
    tries.at_ms.clear();
    CHECK(r.run_one(r.make(2, VQL_OP_READ, 0, 8, data)) == VQL_STATUS_UNSUPP);
}

TEST_CASE("nvme: an error that lasts is not tried again") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    attempts tries(r, std::vector<uint32_t>(100, 0x082));
    CHECK(r.run_one(r.make(1, VQL_OP_READ, 0, 8, data)) == VQL_STATUS_IOERR);
    CHECK(tries.at_ms.size() == 1);
}

TEST_CASE("nvme: a command that waits holds up no other, and a full queue of them is served") {
    nvme_rig r({.depth = 4});
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    attempts tries(r, {0x082 | for_now});
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 8, data)));
    r.engine.flush();
    r.model.drain();
    r.engine.reap();
    CHECK(r.engine.retry_at() <= r.now);
    r.engine.retry(r.now);
    CHECK(r.engine.retry_at() == r.now + VQL_NVME_RETRY_MS * nvme_rig::ms);
    CHECK(r.engine.overdue(r.now, 0).empty()); // it is not with the drive
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 0, 8, data)));
    r.engine.flush();
    r.model.drain();
    r.engine.reap();
    CHECK(r.collect() == std::map<uint64_t, vql_status>{{2, VQL_STATUS_OK}});
    CHECK(r.run() == std::map<uint64_t, vql_status>{{1, VQL_STATUS_OK}});
    CHECK(r.engine.retry_at() == nvme_engine::never);

    tries.at_ms.clear();
    tries.answers.assign(9, 0x082 | for_now); // all of them, three times
    for (uint64_t i = 0; i < 3; i++)
        REQUIRE(r.engine.submit(r.make(i, VQL_OP_WRITE, 8 * i, 8, data)));
    CHECK(r.run().size() == 3);
    CHECK(tries.at_ms.size() == 12);
}

TEST_CASE("nvme: a piece that has failed does not wait for its commands' next try") {
    nvme_rig r({.max_transfer = 4096, .crdt = {10, 0, 0}});
    const std::vector<vql_seg> data = {{r.guest(), 8192}};
    attempts tries(r, {0x021 | 1 << 11 | for_now, 0x082});
    const bool first = GENERATE(true, false); // which of the two fails for good
    if (!first)
        std::swap(tries.answers[0], tries.answers[1]);
    const uint64_t begin = r.now;
    CHECK(r.run_one(r.make(1, VQL_OP_READ, 0, 16, data)) == VQL_STATUS_IOERR);
    CHECK(r.now - begin < 100 * nvme_rig::ms);
    CHECK(r.model.count().commands[VQL_NVME_READ] == 2);
}

TEST_CASE("nvme: what we had aborted is tried again, and a drive's own abort with DNR is not") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    const bool ours = GENERATE(true, false);
    attempts tries(r, {0x007});
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_WRITE, 0, 8, data)));
    r.engine.flush();
    CHECK(r.engine.overdue(r.now, 100).empty());
    if (ours)
        CHECK(r.engine.overdue(r.now + 100, 100).size() == 1);
    CHECK(r.run().at(1) == (ours ? VQL_STATUS_OK : VQL_STATUS_IOERR));
}

TEST_CASE("nvme: a queue pair that is lost takes the waiting commands with it") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    attempts tries(r, {0x082 | for_now});
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_WRITE, 0, 8, data)));
    r.engine.flush();
    r.model.drain();
    r.engine.reap();
    r.model.lose(false);
    r.engine.retry(r.now);
    const bool replaced = GENERATE(true, false);
    if (replaced) {
        r.engine.replace(r.model.queue());
        CHECK(r.engine.retry_at() == nvme_engine::never);
        CHECK(r.run().at(1) == VQL_STATUS_OK);
    } else {
        CHECK(r.engine.take_unfinished().size() == 1);
        CHECK(r.engine.in_flight() == 0);
        CHECK(r.engine.retry_at() == nvme_engine::never);
    }
}

TEST_CASE("nvme: memory that was taken away meanwhile is not read again") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest() + 4096, 4096}};
    attempts tries(r, {0x082 | for_now});
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_WRITE, 0, 8, data)));
    r.engine.flush();
    r.model.drain();
    r.engine.reap();
    r.table()[1] = dma_unmapped;
    CHECK(r.run().at(1) == VQL_STATUS_IOERR);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 1);
}
