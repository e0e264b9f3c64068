// SPDX-License-Identifier: GPL-2.0-only
// What include/vqlane/nvme.h puts into a command, against the specification's words.
#include "ring_memory.h"
#include "vqlane/nvme.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>

using vql::test::random_source;

namespace {

constexpr uint64_t page = VQL_NVME_PAGE_BYTES;
constexpr uint64_t list_dma = 0x7000;

struct prp_builder {
    alignas(4096) std::array<__u64, 512> list{};
    vql_nvme_prp b;
    vql_nvme_sqe sqe{};

    prp_builder() { vql_nvme_prp_begin(&b, list.data()); }
    bool add(uint64_t dma, uint64_t bytes) { return vql_nvme_prp_add(&b, dma, bytes); }
    void end() { vql_nvme_prp_end(&b, list_dma, &sqe); }
};

} // namespace

TEST_CASE("PRPs: one entry may begin at any dword and leaves the second zero") {
    prp_builder p;
    REQUIRE(p.add(5 * page + 4, 1000));
    p.end();
    CHECK(p.sqe.data.prp[0] == 5 * page + 4);
    CHECK(p.sqe.data.prp[1] == 0);
}

TEST_CASE("PRPs: an address that is not dword-aligned is refused") {
    const auto offset = GENERATE(1u, 2u, 3u, 4095u);
    prp_builder p;
    CHECK_FALSE(p.add(5 * page + offset, 1));
    CHECK(p.b.n == 0);
}

TEST_CASE("PRPs: the second of two entries is in the command") {
    prp_builder p;
    REQUIRE(p.add(5 * page + 512, page - 512));
    REQUIRE(p.add(9 * page, 512));
    p.end();
    CHECK(p.sqe.data.prp[0] == 5 * page + 512);
    CHECK(p.sqe.data.prp[1] == 9 * page);
}

TEST_CASE("PRPs: from the third entry on all but the first are in the list") {
    prp_builder p;
    REQUIRE(p.add(5 * page + 512, page - 512));
    for (uint64_t i = 0; i < 512; i++)
        REQUIRE(p.add((1000 - i) * page, page));
    p.end();
    CHECK(p.sqe.data.prp[1] == list_dma);
    for (uint64_t i = 0; i < 512; i++)
        REQUIRE(p.list[i] == (1000 - i) * page);
    CHECK_FALSE(p.add(3 * page, page)); // the list is one page
}

TEST_CASE("PRPs: memory that goes on in the same page needs no entry of its own") {
    prp_builder p;
    REQUIRE(p.add(5 * page + 100, 13));
    REQUIRE(p.add(5 * page + 113, page - 113));
    REQUIRE(p.add(6 * page, 7));
    REQUIRE(p.add(6 * page + 7, 100));
    p.end();
    CHECK(p.b.n == 2);
    CHECK(p.sqe.data.prp[0] == 5 * page + 100);
    CHECK(p.sqe.data.prp[1] == 6 * page);
}

TEST_CASE("PRPs: no gap and no offset between the first entry and the last") {
    prp_builder p;
    REQUIRE(p.add(5 * page, 512)); // ends inside its page
    CHECK_FALSE(p.add(9 * page, page));
    CHECK_FALSE(p.add(5 * page + 1024, 512));
    REQUIRE(p.add(5 * page + 512, page - 512));
    CHECK_FALSE(p.add(9 * page + 512, 512));
    REQUIRE(p.add(9 * page, 512));
    CHECK(p.b.n == 2);
}

TEST_CASE("SGLs: one run is in the command, and runs that touch are one") {
    std::array<vql_nvme_sgl, 256> list{};
    vql_nvme_sgls b;
    vql_nvme_sqe sqe{};
    vql_nvme_sgl_begin(&b, list.data());
    REQUIRE(vql_nvme_sgl_add(&b, 0x1'0000'0003, 5));
    REQUIRE(vql_nvme_sgl_add(&b, 0x1'0000'0008, 4096));
    vql_nvme_sgl_end(&b, list_dma, &sqe);
    CHECK(sqe.flags == 0x40);
    CHECK(sqe.data.sgl.addr == 0x1'0000'0003);
    CHECK(sqe.data.sgl.bytes == 4101);
    CHECK(sqe.data.sgl.type == 0);
}

TEST_CASE("SGLs: several runs are a last segment of at most one page") {
    std::array<vql_nvme_sgl, 257> list{};
    vql_nvme_sgls b;
    vql_nvme_sqe sqe{};
    std::memset(list.data(), 0xff, sizeof(list));
    vql_nvme_sgl_begin(&b, list.data());
    for (uint32_t i = 0; i < 256; i++)
        REQUIRE(vql_nvme_sgl_add(&b, 2 * page * i + 1, i + 1));
    CHECK_FALSE(vql_nvme_sgl_add(&b, 0x5000'0000, 1));
    vql_nvme_sgl_end(&b, list_dma, &sqe);
    CHECK(sqe.data.sgl.addr == list_dma);
    CHECK(sqe.data.sgl.bytes == 4096);
    CHECK(sqe.data.sgl.type == 0x30);
    for (uint32_t i = 0; i < 256; i++) {
        vql_nvme_sgl want{};
        want.addr = 2 * page * i + 1;
        want.bytes = i + 1;
        REQUIRE(std::memcmp(&list[i], &want, sizeof(want)) == 0);
    }
    CHECK(list[256].type == 0xff);
}

TEST_CASE("commands: fields are where NVMe has them, and all others zero") {
    vql_nvme_sqe sqe;
    std::memset(&sqe, 0xff, sizeof(sqe));
    vql_nvme_command(&sqe, VQL_NVME_WRITE, 0x1234, 7);
    vql_nvme_blocks(&sqe, 0x1'2345'6789, 65536, VQL_NVME_FUA);
    std::array<uint32_t, 16> dword{};
    std::memcpy(dword.data(), &sqe, sizeof(sqe));
    const std::array<uint32_t, 16> want = {0x12340001, 7, 0,          0, 0,          0, 0, 0,
                                           0,          0, 0x23456789, 1, 0x4000ffff, 0, 0, 0};
    CHECK(dword == want);

    vql_nvme_dsm_range range;
    vql_nvme_command(&sqe, VQL_NVME_DSM, 1, 7);
    vql_nvme_deallocate(&sqe, &range, 0x9000, 0x2'0000'0001, 99);
    std::memcpy(dword.data(), &sqe, sizeof(sqe));
    CHECK(dword == std::array<uint32_t, 16>{0x10009, 7, 0, 0, 0, 0, 0x9000, 0, 0, 0, 0, 4});
    CHECK(range.attributes == 0);
    CHECK(range.blocks == 99);
    CHECK(range.lba == 0x2'0000'0001);
}

TEST_CASE("completions: taken when the phase bit is this pass's") {
    vql_nvme_cqe entry{}, cqe{};
    CHECK_FALSE(vql_nvme_cqe_take(&entry, 1, &cqe));
    entry = {1, 2, 3, 4, 5, 1};
    REQUIRE(vql_nvme_cqe_take(&entry, 1, &cqe));
    CHECK(cqe.cid == 5);
    CHECK(cqe.sq_head == 3);
    CHECK_FALSE(vql_nvme_cqe_take(&entry, 0, &cqe));
    entry.status = 0;
    CHECK(vql_nvme_cqe_take(&entry, 0, &cqe));
}

TEST_CASE("completions: a status of NVMe becomes one of virtio") {
    const auto status = [](uint32_t code, uint32_t more, uint32_t phase) {
        vql_nvme_cqe cqe{};
        cqe.status = uint16_t(more << 12 | code << 1 | phase);
        return vql_nvme_status(&cqe);
    };
    for (uint32_t phase : {0u, 1u}) {
        CHECK(status(0, 0, phase) == VQL_STATUS_OK);
        CHECK(status(VQL_NVME_SC_INVALID_OPCODE, 8, phase) == VQL_STATUS_UNSUPP);
        CHECK(status(VQL_NVME_SC_UNRECOVERED_READ, 0, phase) == VQL_STATUS_IOERR);
        CHECK(status(0x100, 0, phase) == VQL_STATUS_IOERR); // of another type than generic
        CHECK(status(0x101, 0, phase) == VQL_STATUS_IOERR);
        CHECK(status(VQL_NVME_SC_ABORTED, 8, phase) == VQL_STATUS_IOERR);
    }
}

TEST_CASE("shadow doorbells: the register is written when the event index is passed, not else") {
    random_source random(901);
    for (int i = 0; i < 20000; i++) {
        // On a queue so deep that nothing wraps: the controller asked to be told past @event.
        const auto old = uint16_t(random.between(100, 40000));
        const auto now = uint16_t(old + random.between(1, 1000));
        const auto event = uint16_t(random.between(old - 100u, now + 100u));
        uint32_t doorbell = 0xffff'ffff, shadow = old;
        const uint32_t event_index = event;
        vql_nvme_ring(&doorbell, &shadow, &event_index, old, now);
        REQUIRE(shadow == now);
        const bool passed = event >= old && event < now;
        REQUIRE(doorbell == (passed ? now : 0xffff'ffff));
    }
}

TEST_CASE("shadow doorbells: a queue that wraps still rings where the event index is passed") {
    const uint32_t depth = GENERATE(2u, 3u, 8u, 64u);
    for (uint32_t old = 0; old < depth; old++)
        for (uint32_t n = 1; n < depth; n++) {
            const uint32_t now = (old + n) % depth;
            // A controller that is asleep has seen all before @old, and says so.
            uint32_t doorbell = 0xffff'ffff, shadow = old;
            vql_nvme_ring(&doorbell, &shadow, &old, old, now);
            REQUIRE(doorbell == now);
        }
}
