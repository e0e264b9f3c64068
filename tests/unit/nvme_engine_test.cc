// SPDX-License-Identifier: GPL-2.0-only
// The NVMe engine: what becomes of a piece, one property at a time.
#include "nvme_rig.h"

#include <catch2/generators/catch_generators.hpp>
#include <csignal>
#include <set>
#include <sys/mman.h>

using namespace vql;
using namespace vql::test;
using options = nvme_model::options;

namespace {

constexpr uint32_t rung_not = 0xabcd'ef01; // in a doorbell

void fill(uint8_t* at, uint64_t bytes, uint64_t seed) {
    std::mt19937_64 random(seed);
    for (uint64_t i = 0; i < bytes; i++)
        at[i] = uint8_t(random());
}

bool all_zero(const uint8_t* at, uint64_t bytes) {
    return std::all_of(at, at + bytes, [](uint8_t b) { return !b; });
}

} // namespace

TEST_CASE("nvme: a write and a read of aligned memory move it without a copy") {
    nvme_rig r({.block_bytes = GENERATE(512u, 4096u)});
    const uint32_t block = r.options.block_bytes;
    const std::vector<vql_seg> out = {{r.guest(), 8192}}, in = {{r.guest() + 65536, 8192}};
    fill(r.guest(), 8192, 1);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 8, 8192 / block, out)) == VQL_STATUS_OK);
    CHECK(std::memcmp(r.model.block(8), r.guest(), 8192) == 0);
    CHECK(r.run_one(r.make(2, VQL_OP_READ, 8, 8192 / block, in)) == VQL_STATUS_OK);
    CHECK(std::memcmp(r.guest() + 65536, r.guest(), 8192) == 0);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 1);
    CHECK(r.model.count().commands[VQL_NVME_READ] == 1);
    CHECK(r.model.count().pool_data == 0);
}

TEST_CASE("nvme: a piece is split at the largest transfer") {
    nvme_rig r({.max_transfer = 32 << 10});
    const std::vector<vql_seg> data = {{r.guest() + 512, 1 << 20}};
    fill(r.guest(), 2 << 20, 2);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 1, 2048, data)) == VQL_STATUS_OK);
    CHECK(std::memcmp(r.model.block(1), r.guest() + 512, 1 << 20) == 0);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 32);
    CHECK(r.model.count().pool_data == 0);
}

TEST_CASE("nvme: a piece is split at the namespace's boundary") {
    nvme_rig r({.boundary_blocks = 96}); // no power of two
    const std::vector<vql_seg> data = {{r.guest(), 100 * 512}};
    fill(r.guest(), 100 * 512, 3);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 95, 98, data)) == VQL_STATUS_OK);
    CHECK(std::memcmp(r.model.block(95), r.guest(), 98 * 512) == 0);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 3);
}

TEST_CASE("nvme: a piece larger than the queue goes through it in turns") {
    nvme_rig r({.max_transfer = 4096, .depth = GENERATE(2u, 3u, 64u)});
    const std::vector<vql_seg> data = {{r.guest(), 1 << 20}};
    fill(r.guest(), 1 << 20, 4);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 0, 2048, data)) == VQL_STATUS_OK);
    CHECK(std::memcmp(r.model.block(0), r.guest(), 1 << 20) == 0);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 256);
}

TEST_CASE("nvme: segments with gaps use SGLs where there are any, else commands of their own") {
    nvme_rig r({.sgl = GENERATE(false, true)});
    std::vector<vql_seg> data;
    for (uint64_t i = 0; i < 8; i++)
        data.push_back({r.guest() + i * 8192 + 1024, 2048}); // whole blocks, but PRPs have no gaps
    fill(r.guest(), 65536, 5);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 0, 32, data)) == VQL_STATUS_OK);
    for (uint64_t i = 0; i < 8; i++)
        CHECK(std::memcmp(r.model.block(i * 4), data[i].base, 2048) == 0);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == (r.options.sgl ? 1 : 8));
    CHECK(r.model.count().sgl == (r.options.sgl ? 1 : 0));
    CHECK(r.model.count().pool_data == 0);
}

TEST_CASE("nvme: more descriptors than a list holds are several commands of whole blocks") {
    nvme_rig r({.sgl = true});
    // Each segment is two runs: it crosses into a page that is elsewhere for the controller.
    std::vector<vql_seg> data;
    for (uint64_t page = 1; data.size() < 200; page++) {
        REQUIRE((page + 1) * 4096 < nvme_rig::guest_bytes);
        if (r.table()[page] != r.table()[page - 1] + 4096)
            data.push_back({r.guest() + page * 4096 - 5, 10});
    }
    data.push_back({r.guest() + nvme_rig::guest_bytes - 48, 48});
    fill(r.guest(), nvme_rig::guest_bytes, 9);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 0, 4, data)) == VQL_STATUS_OK);
    uint64_t at = 0;
    for (const vql_seg& s : data) {
        REQUIRE(std::memcmp(r.model.block(0) + at, s.base, s.bytes) == 0);
        at += s.bytes;
    }
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 2); // 256 runs of 5 bytes are 2.5 blocks
    CHECK(r.model.count().pool_data == 0);
    CHECK(r.bounced == 0);
}

TEST_CASE("nvme: a large piece leaves room for others") {
    nvme_rig r({.max_transfer = 4096});
    const std::vector<vql_seg> data = {{r.guest(), 1 << 20}},
                               other = {{r.guest() + (2 << 20), 512}};
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 2048, data)));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 9000, 1, other)));
    r.engine.flush();
    r.model.fetch();
    CHECK(r.model.touches(9000, 1));
    r.model.complete(r.model.under_way().size());
    r.engine.reap();
    CHECK(r.collect() == std::map<uint64_t, vql_status>{{2, VQL_STATUS_OK}});
    CHECK(r.run() == std::map<uint64_t, vql_status>{{1, VQL_STATUS_OK}});
}

TEST_CASE("nvme: a piece that goes on does not overtake one that waits for a bounce page") {
    nvme_rig r({.bounce_pages = 32}); // all of which the first one takes
    const std::vector<vql_seg> large = {{r.guest() + 1, 64 * 4096}},
                               small = {{r.guest() + (1 << 20) + 1, 512}};
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 512, large)));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 9000, 1, small)));
    std::vector<uint64_t> order;
    for (int i = 0; r.engine.in_flight(); i++) {
        REQUIRE(i < 100);
        r.engine.flush();
        r.model.drain();
        r.engine.reap();
        for (const auto& [id, status] : r.collect())
            order.push_back(id);
    }
    CHECK(order == std::vector<uint64_t>{2, 1});
}

TEST_CASE("nvme: a piece that fails while it waits for a bounce page is done") {
    nvme_rig r({.bounce_pages = 1});
    const std::vector<vql_seg> large = {{r.guest() + 1, 65536}};
    r.model.inject = [](const vql_nvme_sqe&) { return VQL_NVME_SC_UNRECOVERED_READ; };
    CHECK(r.run_one(r.make(1, VQL_OP_READ, 0, 128, large)) == VQL_STATUS_IOERR);
    CHECK(r.model.count().commands[VQL_NVME_READ] == 1);
}

TEST_CASE("nvme: only blocks that no command can express are bounced") {
    nvme_rig r;
    // 100 bytes, then dword-aligned memory to the end.
    const std::vector<vql_seg> data = {{r.guest() + 7, 100}, {r.guest() + 8192, 16384 - 100}};
    fill(r.guest(), 65536, 6);
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 0, 32, data)) == VQL_STATUS_OK);
    CHECK(std::memcmp(r.model.block(0), r.guest() + 7, 100) == 0);
    CHECK(std::memcmp(r.model.block(0) + 100, r.guest() + 8192, 16384 - 100) == 0);
    CHECK(r.model.count().pool_data == 512);
    CHECK(r.bounced == 512);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 2);
    CHECK(r.run_one(r.make(2, VQL_OP_READ, 0, 32, data)) == VQL_STATUS_OK);
    CHECK(r.bounced == 1024);
}

TEST_CASE("nvme: odd addresses are bounced a page at a time, and few pages serve many pieces") {
    nvme_rig r({.bounce_pages = 2});
    const std::vector<vql_seg> a = {{r.guest() + 1, 65536}}, b = {{r.guest() + 100001, 65536}};
    fill(r.model.block(0), 131072, 7);
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 128, a)));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 128, 128, b)));
    const auto done = r.run();
    CHECK(done == std::map<uint64_t, vql_status>{{1, VQL_STATUS_OK}, {2, VQL_STATUS_OK}});
    CHECK(std::memcmp(r.model.block(0), r.guest() + 1, 65536) == 0);
    CHECK(std::memcmp(r.model.block(128), r.guest() + 100001, 65536) == 0);
    CHECK(r.model.count().commands[VQL_NVME_READ] == 32);
}

TEST_CASE("nvme: memory that is not mapped for DMA fails the piece before anything is submitted") {
    nvme_rig r({.max_transfer = 8192, .sgl = GENERATE(false, true)});
    const uint64_t skew = GENERATE(0u, 1u, 256u); // direct, bounced, and neither
    const std::vector<vql_seg> data = {{r.guest() + skew, 20 * 4096}};
    r.table()[GENERATE(0u, 1u, 3u, 19u)] = dma_unmapped;
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 0, 160, data)) == VQL_STATUS_IOERR);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 0);
    CHECK(r.where.errors == 1);
    CHECK(all_zero(r.model.block(0), 20 * 4096));

    // … nor memory that is in no region, nor a piece without memory.
    const std::vector<vql_seg> outside = {{r.guest() + nvme_rig::guest_bytes, 512}};
    CHECK(r.run_one(r.make(2, VQL_OP_WRITE, 0, 1, outside)) == VQL_STATUS_IOERR);
    vql::piece none = r.make(3, VQL_OP_WRITE, 0, 1, data);
    none.dma = nullptr;
    CHECK(r.run_one(none) == VQL_STATUS_IOERR);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 0);
}

TEST_CASE("nvme: the command that was made last is told, to its owner") {
    nvme_rig r({.depth = 4});
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    const auto none = std::pair<uint16_t, uint16_t>();
    std::vector<vql::piece> pieces;
    for (unsigned i = 0; i < 4; i++)
        pieces.push_back(r.make(i, VQL_OP_READ, i * 8, 8, data));
    CHECK(r.engine.last_command(pieces[0].owner) == none);
    std::set<uint16_t> cids;
    for (unsigned i = 0; i < 3; i++) {
        REQUIRE(r.engine.submit(pieces[i]));
        const auto [qid, cid] = r.engine.last_command(pieces[i].owner);
        CHECK(qid == 7); // the model's
        CHECK(cids.insert(cid).second);
        CHECK(r.engine.last_command(pieces[(i + 1) % 4].owner) == none);
    }
    CHECK(r.run().size() == 3);
    CHECK(r.engine.last_command(pieces[2].owner) == none);
}

TEST_CASE("nvme: flush is a command where there is a volatile cache, else done at once") {
    nvme_rig r({.volatile_cache = GENERATE(false, true)});
    const std::vector<vql_seg> data = {{r.guest(), 4096}};
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE, 0, 8, data)) == VQL_STATUS_OK);
    CHECK(r.model.unstable(0, 8) == (r.options.volatile_cache ? 8 : 0));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_FLUSH, 0, 0)));
    CHECK(r.engine.done().empty() == r.options.volatile_cache);
    CHECK(r.run().at(2) == VQL_STATUS_OK);
    CHECK(r.model.count().commands[VQL_NVME_FLUSH] == (r.options.volatile_cache ? 1 : 0));
    CHECK(r.model.unstable(0, 8) == 0);
}

TEST_CASE("nvme: a durable piece is stable when it is done, however it is carried out") {
    nvme_rig r({.max_transfer = 8192, .write_zeroes = GENERATE(false, true)});
    const vql_op op = GENERATE(VQL_OP_WRITE, VQL_OP_WRITE_ZEROES, VQL_OP_DISCARD);
    const std::vector<vql_seg> data = {{r.guest() + GENERATE(0u, 1u), 32768}};
    vql::piece p = r.make(1, op, 8, 64, data);
    p.durable = true;
    CHECK(r.run_one(p) == VQL_STATUS_OK);
    CHECK(r.model.unstable(0, 128) == 0);
    p.durable = false;
    CHECK(r.run_one(p) == VQL_STATUS_OK);
    CHECK(r.model.unstable(0, 128) == 64);
}

TEST_CASE("nvme: discard deallocates, and is refused where the controller cannot") {
    nvme_rig r({.discard = GENERATE(false, true)});
    fill(r.model.block(0), 65536, 8);
    const bool can = r.options.discard;
    CHECK(r.run_one(r.make(1, VQL_OP_DISCARD, 8, 64)) == (can ? VQL_STATUS_OK : VQL_STATUS_UNSUPP));
    CHECK(r.model.count().deallocated == (can ? 64 : 0));
    CHECK(all_zero(r.model.block(8), 64 * 512) == can);
    CHECK_FALSE(all_zero(r.model.block(7), 512));
    CHECK_FALSE(all_zero(r.model.block(72), 512));
    CHECK(r.where.errors == 0);
}

TEST_CASE("nvme: write zeroes is a command or writes of zeroes, and may deallocate when asked") {
    nvme_rig r({.blocks = 200000,
                .max_transfer = GENERATE(128u << 10, 64u << 20),
                .write_zeroes = GENERATE(false, true)});
    const uint64_t most = r.options.max_transfer == 64u << 20 ? 65536 : 256;
    const bool unmap = GENERATE(false, true);
    std::fill(r.model.disk().begin(), r.model.disk().end(), uint8_t{0xff});
    // More than NLB can say, or one command may ask for.
    vql::piece p = r.make(1, VQL_OP_WRITE_ZEROES, 5, 150000);
    p.flags = unmap ? VQL_IO_UNMAP : 0;
    CHECK(r.run_one(p) == VQL_STATUS_OK);
    CHECK(all_zero(r.model.block(5), 150000 * 512ull));
    CHECK(*(r.model.block(5) - 1) == 0xff);
    CHECK(*r.model.block(150005) == 0xff);
    CHECK(r.model.count().commands[VQL_NVME_WRITE_ZEROES] ==
          (r.options.write_zeroes ? (149999 / most) + 1 : 0));
    CHECK(r.model.count().deallocated == (r.options.write_zeroes && unmap ? 150000 : 0));
}

TEST_CASE("nvme: discards and write zeroes are cut to what the controller says that it takes") {
    nvme_rig r({.boundary_blocks = 96,
                .max_transfer = 128 << 10,
                .max_zeroes = GENERATE(0u, 16u << 10, 1u << 20),
                .max_discard = GENERATE(0u, 1u, 7u, 100u)});
    std::fill(r.model.disk().begin(), r.model.disk().end(), uint8_t{0xff});
    CHECK(r.run_one(r.make(1, VQL_OP_DISCARD, 5, 1000)) == VQL_STATUS_OK);
    CHECK(all_zero(r.model.block(5), 1000 * 512));
    CHECK(*r.model.block(1005) == 0xff);
    CHECK(r.model.count().deallocated == 1000);
    const uint64_t most = r.options.max_discard ? r.options.max_discard : 1000;
    CHECK(r.model.count().commands[VQL_NVME_DSM] == (999 / most) + 1);
    CHECK(r.run_one(r.make(2, VQL_OP_WRITE_ZEROES, 2000, 1000)) == VQL_STATUS_OK);
    CHECK(all_zero(r.model.block(2000), 1000 * 512));
    CHECK(*r.model.block(3000) == 0xff);
}

TEST_CASE("nvme: how much one command does") {
    const vql_nvme_limits silent = {128 << 10, 0, 0}, says = {128 << 10, 1 << 20, 100};
    const uint64_t large = 1ull << 31;
    for (const uint32_t op : {VQL_OP_READ, VQL_OP_WRITE}) {
        CHECK(vql_nvme_most(&silent, op, 9, 0, 512, large) == 128 << 10);
        CHECK(vql_nvme_most(&silent, op, 9, 0, 512, 4096) == 4096);
        CHECK(vql_nvme_most(&says, op, 9, 0, 512, large) == 128 << 10);
        CHECK(vql_nvme_most(&says, op, 12, 96 << 10, 80 << 10, large) == 16 << 10);
        CHECK(vql_nvme_most(&says, op, 12, 96 << 10, 96 << 10, large) == 96 << 10);
    }
    const uint32_t zeroes = VQL_OP_WRITE_ZEROES, discard = VQL_OP_DISCARD;
    CHECK(vql_nvme_most(&silent, zeroes, 9, 0, 0, large) == 128 << 10);
    CHECK(vql_nvme_most(&says, zeroes, 9, 0, 0, large) == 1 << 20);
    CHECK(vql_nvme_most(&says, zeroes, 9, 96 << 10, 80 << 10, large) == 16 << 10);
    CHECK(vql_nvme_most(&says, zeroes, 9, 0, 0, 512) == 512);
    const auto limits = [](uint32_t wzsl, uint32_t dmrsl, uint64_t dmsl) {
        return vql_nvme_limits_of(4096, wzsl, dmrsl, dmsl);
    };
    CHECK(limits(0, 0, 0).max_transfer == 4096);
    CHECK(limits(8192, 0, 0).max_zeroes == 8192);
    CHECK(limits(0, 0, 0).max_discard == 0);
    CHECK(limits(0, 5, 0).max_discard == 5);
    CHECK(limits(0, 5, 7).max_discard == 5);
    CHECK(limits(0, 7, 5).max_discard == 5);
    CHECK(limits(0, 0, 5).max_discard == 5);
    CHECK(limits(0, 0, 1ull << 40).max_discard == 0);
    CHECK(limits(0, 6, 1ull << 40).max_discard == 6);
    // NLB has 16 bits.
    const vql_nvme_limits all = {1u << 31, 1u << 31, 0};
    CHECK(vql_nvme_most(&all, VQL_OP_READ, 9, 0, 0, large) == 32 << 20);
    CHECK(vql_nvme_most(&all, zeroes, 12, 0, 0, large) == 256 << 20);
    CHECK(vql_nvme_most(&all, discard, 9, 4096, 512, large) == large);
    CHECK(vql_nvme_most(&says, discard, 9, 0, 512, large) == 100 * 512);
    CHECK(vql_nvme_most(&says, discard, 12, 0, 0, large) == 100 * 4096);
    CHECK(vql_nvme_most(&says, discard, 12, 0, 0, 8192) == 8192);
}

TEST_CASE("nvme: what is no whole block, and an unknown operation, are refused") {
    nvme_rig r({.block_bytes = 4096});
    const std::vector<vql_seg> data = {{r.guest(), 8192}};
    vql::piece p = r.make(1, VQL_OP_WRITE, 0, 1, data);
    p.offset = 512;
    CHECK(r.run_one(p) == VQL_STATUS_IOERR);
    p.offset = 0;
    p.bytes = 4096 + 512;
    CHECK(r.run_one(p) == VQL_STATUS_IOERR);
    CHECK(r.run_one(r.make(1, VQL_OP_OTHER, 0, 1, data)) == VQL_STATUS_UNSUPP);
    CHECK(r.model.count().commands[VQL_NVME_WRITE] == 0);
}

TEST_CASE("nvme: the first error of a split piece is its status, told when nothing is under way") {
    nvme_rig r({.max_transfer = 4096, .depth = 64, .shuffle = GENERATE(0u, 1u, 2u)});
    const std::vector<vql_seg> data = {{r.guest(), 1 << 20}},
                               other = {{r.guest() + (2 << 20), 4096}};
    r.model.inject = [](const vql_nvme_sqe& e) {
        return e.cdw10 >= 160 && e.cdw10 < 2048 ? VQL_NVME_SC_UNRECOVERED_READ : 0;
    };
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 2048, data)));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 4096, 8, other)));
    std::map<uint64_t, vql_status> done;
    for (int i = 0; r.engine.in_flight(); i++) {
        REQUIRE(i < 1000);
        r.engine.flush();
        r.model.fetch();
        r.model.complete(1);
        r.engine.reap();
        for (const auto& [id, status] : r.collect()) {
            if (id == 1)
                CHECK_FALSE(r.model.touches(0, 2048));
            REQUIRE(done.emplace(id, status).second);
        }
    }
    CHECK(done == std::map<uint64_t, vql_status>{{1, VQL_STATUS_IOERR}, {2, VQL_STATUS_OK}});
    // No more commands than were under way when the first failed.
    CHECK(r.model.count().commands[VQL_NVME_READ] < 110);
    CHECK(r.where.errors == 1);
    CHECK(r.where.last_error_offset >= 160 * 512);
    CHECK(r.where.last_error_op == VQL_OP_READ);
}

TEST_CASE("nvme: a command that the controller does not know is told as unsupported") {
    nvme_rig r;
    r.model.inject = [](const vql_nvme_sqe& e) {
        return e.opcode == VQL_NVME_WRITE_ZEROES ? VQL_NVME_SC_INVALID_OPCODE : 0;
    };
    CHECK(r.run_one(r.make(1, VQL_OP_WRITE_ZEROES, 0, 8)) == VQL_STATUS_UNSUPP);
    CHECK(r.where.errors == 0);
}

TEST_CASE("nvme: the controller is told of a whole batch by one write of its doorbell") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    *r.model.sq_doorbell() = rung_not;
    for (uint64_t i = 0; i < 20; i++)
        REQUIRE(r.engine.submit(r.make(i, VQL_OP_READ, i, 1, data)));
    CHECK(*r.model.sq_doorbell() == rung_not);
    r.engine.flush();
    CHECK(*r.model.sq_doorbell() == 20);
    *r.model.sq_doorbell() = rung_not;
    r.engine.flush(); // nothing new
    CHECK(*r.model.sq_doorbell() == rung_not);
    *r.model.sq_doorbell() = 20;
    CHECK(r.run().size() == 20);
    CHECK(r.model.count().rings == 1);
}

TEST_CASE("nvme: with shadow doorbells an awake controller's register is left alone") {
    nvme_rig r({.shadow = true});
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    const auto batch = [&](uint64_t n) {
        for (uint64_t i = 0; i < n; i++)
            REQUIRE(r.engine.submit(r.make(i, VQL_OP_READ, i, 1, data)));
        r.engine.flush();
    };
    batch(5);
    CHECK(*r.model.sq_doorbell() == 5); // it was asleep
    r.model.fetch();
    *r.model.sq_doorbell() = rung_not;
    *r.model.sq_event() = 63; // as one does that looks at the shadow anyway
    batch(5);
    CHECK(*r.model.sq_doorbell() == rung_not);
    *r.model.sq_event() = 11; // wake me when the entry at 11 is there
    batch(1);
    CHECK(*r.model.sq_doorbell() == rung_not);
    batch(1);
    CHECK(*r.model.sq_doorbell() == 12);
    r.model.drain();
    r.engine.reap();
    CHECK(r.engine.done().size() == 12);
    r.engine.clear_done();
    CHECK_FALSE(r.engine.in_flight());
}

TEST_CASE("nvme: queues wrap, and every piece is done once") {
    nvme_rig r({.depth = GENERATE(2u, 3u, 7u, 64u),
                .shadow = GENERATE(false, true),
                .shuffle = GENERATE(0u, 9u)});
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    uint64_t id = 0, done = 0;
    for (int i = 0; i < 500; i++) {
        while (r.engine.submit(r.make(id, VQL_OP_READ, id % 1000, 1, data)))
            id++;
        CHECK(r.engine.in_flight() == r.options.depth - 1);
        CHECK_FALSE(r.engine.room());
        r.engine.flush();
        r.model.fetch();
        r.model.complete(1 + uint64_t(i) % r.options.depth);
        r.engine.reap();
        const auto now = r.collect();
        CHECK(!now.empty());
        CHECK(r.engine.room());
        done += now.size();
    }
    done += r.run().size();
    CHECK(done == id);
    CHECK(r.model.count().commands[VQL_NVME_READ] == id);
}

TEST_CASE("nvme: pending tells that a completion, or the loss of the queue pair, is to be seen") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 1, data)));
    r.engine.flush();
    CHECK_FALSE(r.engine.pending());
    r.model.drain();
    CHECK(r.engine.pending());
    r.engine.reap();
    CHECK(r.engine.pending()); // done() was not looked at
    r.engine.clear_done();
    CHECK_FALSE(r.engine.pending());
    r.model.set_state(1);
    CHECK(r.engine.pending());
}

TEST_CASE("nvme: overdue tells the commands that were there for the time given") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 1, data)));
    r.engine.flush();
    CHECK(r.engine.overdue(1000, 100).empty()); // seen first
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 1, 1, data)));
    r.engine.flush();
    CHECK(r.engine.overdue(1099, 100).empty());
    r.model.fetch();
    CHECK(r.engine.overdue(1100, 100) == std::vector<uint16_t>{r.model.under_way()[0].cid});
    CHECK(r.engine.overdue(1199, 100).size() == 2);
    r.model.drain();
    r.engine.reap();
    CHECK(r.engine.overdue(5000, 100).empty());
    // A new command in an old one's place has its own time.
    REQUIRE(r.engine.submit(r.make(3, VQL_OP_READ, 0, 1, data)));
    CHECK(r.engine.overdue(9000, 100).empty());
    r.run();
}

TEST_CASE("nvme: an aborted command fails its piece; completions of nothing are counted") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 1, data)));
    r.engine.flush();
    r.model.fetch();
    const uint16_t cid = r.model.under_way()[0].cid;
    r.model.inject = [](const vql_nvme_sqe&) { return VQL_NVME_SC_ABORTED; };
    r.model.complete(1);
    r.model.post(cid, 0);    // once more
    r.model.post(0xffff, 0); // never used
    r.model.post(62, 0);     // could be, but is not under way
    r.engine.reap();
    CHECK(r.collect() == std::map<uint64_t, vql_status>{{1, VQL_STATUS_IOERR}});
    // A command that uses the same entry of the table is not taken for the old one.
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 0, 1, data)));
    r.engine.flush();
    r.model.post(cid, 0);
    r.engine.reap();
    CHECK(r.engine.done().empty());
    CHECK(r.engine.unexpected() == 4);
    r.unexpected_wanted = 4;
    r.model.inject = nullptr;
    CHECK(r.run() == std::map<uint64_t, vql_status>{{2, VQL_STATUS_OK}});
}

TEST_CASE("nvme: a queue or pool that cannot serve is refused with the reason") {
    nvme_model model({});
    nvme_queue q = model.queue();
    nvme_engine engine;
    SECTION("depth") {
        q.depth = GENERATE(0u, 1u, 1025u);
    }
    SECTION("pool") {
        q.pool_pages = q.depth;
    }
    SECTION("transfer") {
        q.limits.max_transfer = GENERATE(0u, 512u, 6144u);
    }
    const auto opened = engine.open(q);
    REQUIRE_FALSE(opened);
    CHECK_FALSE(opened.failure().text.empty());
}
