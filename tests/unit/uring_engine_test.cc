// SPDX-License-Identifier: GPL-2.0-only
// What of the io_uring engine cannot be seen through the daemon: memory that cannot be pinned.
#include "engine/uring.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace {

struct ring_for_test {
    io_uring ring{};
    int error = io_uring_queue_init(64, &ring, IORING_SETUP_SINGLE_ISSUER);
    ~ring_for_test() {
        if (!error)
            io_uring_queue_exit(&ring);
    }
};

} // namespace

TEST_CASE("uring: data in memory that cannot be pinned is copied before it is written") {
    ring_for_test r;
    if (r.error)
        SKIP("io_uring: " << std::strerror(-r.error));
    vql::uring_engine engine;
    REQUIRE(engine.open(r.ring));
    std::array<char, 32> path{"/tmp/vqlane-uring-XXXXXX"};
    vql::target where;
    where.kind = vql::target_kind::uring;
    where.fd.reset(::mkstemp(path.data()));
    REQUIRE(where.fd);
    ::unlink(path.data());
    where.bytes = 4096;
    REQUIRE(::ftruncate(where.fd.get(), 4096) == 0);

    const bool unpinnable = GENERATE(true, false);
    alignas(4096) static std::array<uint8_t, 4096> memory;
    memory.fill(1);
    const vql_seg seg = {memory.data(), memory.size()};
    __u64 bounced = 0;
    vql::piece p;
    p.bounced = &bounced;
    p.where = &where;
    p.bytes = memory.size();
    p.seg = &seg;
    p.nsegs = 1;
    p.op = VQL_OP_WRITE;
    p.unpinnable = unpinnable;
    REQUIRE(engine.submit(p));
    memory.fill(2); // what the kernel sees, if it is given this memory
    engine.flush();
    while (engine.done().empty()) {
        io_uring_cqe* c = nullptr;
        REQUIRE(io_uring_wait_cqe(&r.ring, &c) == 0);
        const auto data = c->user_data;
        const auto res = c->res;
        io_uring_cqe_seen(&r.ring, c);
        if (data)
            engine.complete(data, res);
    }
    CHECK(engine.done()[0].status == VQL_STATUS_OK);
    uint8_t written = 0;
    REQUIRE(::pread(where.fd.get(), &written, 1, 100) == 1);
    CHECK(written == (unpinnable ? 1 : 2));
    CHECK(bounced == (unpinnable ? memory.size() : 0));
}
