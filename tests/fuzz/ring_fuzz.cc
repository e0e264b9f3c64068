// SPDX-License-Identifier: GPL-2.0-only
// Hostile ring memory → vring.h and blk.h. The input, zeros behind its end:
//
//   0       bit 0 EVENT_IDX, 1 INDIRECT_DESC, 2 blocks of 4096, 3 read-only, 4 discard and write
//           zeroes, 5…7 how many answers are published together, less one
//   1       log2 of the queue size, less one, modulo 6
//   2…3     first entry of the available ring that was not taken yet
//   4…      descriptor table, available ring, and the guest's four regions: 0x1000, its neighbour
//           0x2000, 0x5000, and its neighbour 0x6000, which is read-only, a page each
#include "fuzz/fuzz.h"
#include "unit/hostile_ring.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace vql::test;

namespace {

constexpr unsigned sizes = 6; // queues of 2…64 entries

struct input {
    const uint8_t* data;
    size_t size;

    void fill(uint8_t* to, size_t bytes) {
        const size_t n = std::min(bytes, size);
        if (n)
            std::memcpy(to, data, n);
        std::memset(to + n, 0, bytes - n);
        data += n;
        size -= n;
    }
};

} // namespace

int fuzz_ring(const uint8_t* data, size_t size) {
    // Made once: mapping memory for each input would take most of the time.
    static const guest_ram ram({{0x1000, 0x1000},
                                {0x2000, 0x1000},
                                {0x5000, 0x1000},
                                {0x6000, 0x1000, VQL_MEM_READ_ONLY}});
    static std::array<std::unique_ptr<test_ring>, sizes> rings;
    std::array<uint8_t, 4> head{};
    input in = {data, size};

    in.fill(head.data(), head.size());
    auto& slot = rings[head[1] % sizes];
    if (!slot)
        slot = std::make_unique<test_ring>(static_cast<uint16_t>(2u << head[1] % sizes));
    test_ring& t = *slot;
    t.ring.event_idx = head[0] & 1;
    t.ring.indirect = head[0] & 2;
    t.ring.next_avail = static_cast<uint16_t>(head[2] | head[3] << 8);
    t.ring.next_used = t.ring.signalled = 0;
    vql_blk_disk disk{};
    disk.sectors = 64;
    disk.block_bytes = head[0] & 4 ? 4096 : 512;
    disk.read_only = head[0] & 8;
    disk.discard = disk.write_zeroes = disk.unmap = head[0] & 16;
    in.fill(t.desc_bytes(), vql_desc_bytes(t.ring.num));
    in.fill(t.avail_bytes(), vql_avail_bytes(t.ring.num));
    for (const vql_region& r : ram.regions())
        in.fill(r.host, r.bytes);
    if (const char* broken = serve_all(ram, t, disk, 1u + (head[0] >> 5)).broken) {
        std::fprintf(stderr, "does not hold: %s\n", broken);
        std::abort();
    }
    return 0;
}

#ifdef VQL_FUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return fuzz_ring(data, size);
}
#endif
