// SPDX-License-Identifier: GPL-2.0-only
// Guest memory and a virtqueue for tests of the shared headers. Everything the device may touch
// lies between pages that nobody may touch, so a byte too far is a crash, with ASan or without.
#pragma once

#include "vqlane/blk.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <sys/mman.h>
#include <vector>

namespace vql::test {

// The seed of this run, printed once. VQL_SEED=N repeats a run.
inline uint64_t run_seed() {
    static const uint64_t seed = [] {
        const char* given = std::getenv("VQL_SEED");
        const uint64_t value = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
        std::fprintf(stderr, "VQL_SEED=%llu\n", static_cast<unsigned long long>(value));
        return value;
    }();
    return seed;
}

class random_source {
  public:
    // Each test has its own stream, so that it repeats when it is run alone.
    explicit random_source(uint64_t stream) : engine_(run_seed() * 1000003 + stream) {}

    uint64_t any() { return engine_(); }
    // Uniform enough for tests: low…high, both included.
    uint64_t between(uint64_t low, uint64_t high) { return low + engine_() % (high - low + 1); }
    bool one_in(uint64_t n) { return engine_() % n == 0; }

  private:
    std::mt19937_64 engine_;
};

// @bytes between two inaccessible pages; they end where the second begins (less what @align takes).
class guarded_bytes {
  public:
    explicit guarded_bytes(size_t bytes, size_t align = 1, int prot = PROT_READ | PROT_WRITE)
        : inside_((bytes + page - 1) / page * page) {
        void* map = ::mmap(nullptr, inside_ + 2 * page, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED || ::mprotect(static_cast<uint8_t*>(map) + page, inside_, prot) < 0) {
            std::perror("guarded_bytes");
            std::abort();
        }
        map_ = static_cast<uint8_t*>(map);
        data_ = map_ + page + (inside_ - bytes) / align * align;
    }
    guarded_bytes(const guarded_bytes&) = delete;
    guarded_bytes& operator=(const guarded_bytes&) = delete;
    ~guarded_bytes() { ::munmap(map_, inside_ + 2 * page); }

    uint8_t* data() const { return data_; }

  private:
    static constexpr size_t page = 4096;
    size_t inside_;
    uint8_t* map_;
    uint8_t* data_;
};

using u16s = std::initializer_list<uint16_t>;

struct piece {
    uint64_t guest;
    uint64_t bytes;
    uint32_t flags = 0; // VQL_MEM_…
};

class guest_ram {
  public:
    // Pieces in ascending order, none overlapping. PROT_NONE: for addresses only, nothing is
    // touched.
    explicit guest_ram(const std::vector<piece>& pieces, int prot = PROT_READ | PROT_WRITE) {
        for (const piece& p : pieces) {
            memory_.push_back(std::make_unique<guarded_bytes>(p.bytes, 1, prot));
            regions_.push_back({p.guest, p.bytes, memory_.back()->data(), p.flags});
        }
    }

    vql_mem mem() const { return {regions_.data(), static_cast<uint32_t>(regions_.size()), 0}; }
    const std::vector<vql_region>& regions() const { return regions_; }

    // Where guest byte @guest is here; nullptr outside. The naive search that vql_mem_find is not.
    uint8_t* at(uint64_t guest) const {
        for (const vql_region& r : regions_)
            if (guest >= r.guest && guest - r.guest < r.bytes)
                return r.host + (guest - r.guest);
        return nullptr;
    }
    // Byte by byte, so that ranges over several regions need no thought.
    void write(uint64_t guest, const void* from, size_t bytes) const {
        for (size_t i = 0; i < bytes; i++)
            *at(guest + i) = static_cast<const uint8_t*>(from)[i];
    }
    void read(uint64_t guest, void* to, size_t bytes) const {
        for (size_t i = 0; i < bytes; i++)
            static_cast<uint8_t*>(to)[i] = *at(guest + i);
    }

    bool contains(const void* base, uint64_t bytes) const { return holds(base, bytes, 0); }
    // … and the device may write there.
    bool may_write(const void* base, uint64_t bytes) const {
        return holds(base, bytes, VQL_MEM_READ_ONLY);
    }

  private:
    // In one region that has none of the flags in @without.
    bool holds(const void* base, uint64_t bytes, uint32_t without) const {
        const auto* p = static_cast<const uint8_t*>(base);
        return std::any_of(regions_.begin(), regions_.end(), [&](const vql_region& r) {
            return p >= r.host && p <= r.host + r.bytes &&
                   bytes <= static_cast<uint64_t>(r.host + r.bytes - p) && !(r.flags & without);
        });
    }

    std::vector<std::unique_ptr<guarded_bytes>> memory_;
    std::vector<vql_region> regions_;
};

// One virtqueue, seen from both sides.
class test_ring {
  public:
    explicit test_ring(uint16_t num, bool indirect = true, bool event_idx = false)
        : desc_(vql_desc_bytes(num), 16), avail_(vql_avail_bytes(num), 2),
          used_(vql_used_bytes(num), 4) {
        ring.desc = reinterpret_cast<const vql_desc*>(desc_.data());
        ring.avail = reinterpret_cast<vql_avail*>(avail_.data());
        ring.used = reinterpret_cast<vql_used*>(used_.data());
        ring.num = num;
        ring.indirect = indirect;
        ring.event_idx = event_idx;
    }

    void set_desc(uint32_t index, const vql_desc& d) {
        reinterpret_cast<vql_desc*>(desc_.data())[index] = d;
    }
    void set_desc(uint32_t index, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next = 0) {
        set_desc(index, vql_desc{addr, len, flags, next});
    }
    // The driver makes @head available.
    void offer(uint16_t head) {
        vql_avail* a = ring.avail;
        a->ring[a->idx & (ring.num - 1)] = head;
        vql_store_release(&a->idx, static_cast<uint16_t>(a->idx + 1));
    }
    // virtio 1.3 §2.7.6 and §2.7.8: the event indexes lie behind the rings of num entries.
    uint16_t& used_event() {
        return *reinterpret_cast<uint16_t*>(avail_.data() + 4 + size_t{2} * ring.num);
    }
    uint16_t& avail_event() {
        return *reinterpret_cast<uint16_t*>(used_.data() + 4 + size_t{8} * ring.num);
    }
    uint8_t* desc_bytes() { return desc_.data(); }
    uint8_t* avail_bytes() { return avail_.data(); }

    vql_ring ring{};

  private:
    guarded_bytes desc_, avail_, used_;
};

// What must hold of any chain that was walked without an error, whatever the driver wrote.
// Returns what does not, or nullptr.
inline const char* broken_invariant(const guest_ram& ram, const vql_chain& c, const vql_seg* seg,
                                    uint32_t room) {
    uint64_t out = 0, in = 0;

    if (c.nout > room || c.nin > room - c.nout)
        return "more segments than the array has";
    for (uint32_t i = 0; i < c.nout + c.nin; i++) {
        if (!seg[i].bytes)
            return "an empty segment";
        if (!ram.contains(seg[i].base, seg[i].bytes))
            return "a segment outside guest memory";
        if (i >= c.nout && !ram.may_write(seg[i].base, seg[i].bytes))
            return "a writable segment in read-only memory";
        (i < c.nout ? out : in) += seg[i].bytes;
    }
    if (c.truncated ? out > c.out_bytes : out != c.out_bytes)
        return "readable bytes are not the sum of the readable segments";
    if (c.truncated ? in > c.in_bytes : in != c.in_bytes)
        return "writable bytes are not the sum of the writable segments";
    if (c.out_bytes + c.in_bytes > 0xffffffff)
        return "a chain longer than 32 bits can tell";
    if ((c.last_in != nullptr) != (c.in_bytes > 0))
        return "last_in does not agree with in_bytes";
    if (c.last_in && !ram.may_write(c.last_in, 1))
        return "last_in outside guest memory, or in read-only memory";
    if (c.nin && !c.truncated) {
        const vql_seg& last = seg[c.nout + c.nin - 1];
        if (c.last_in != static_cast<uint8_t*>(last.base) + last.bytes - 1)
            return "last_in is not the last writable byte";
    }
    return nullptr;
}
inline const char* broken_invariant(const guest_ram& ram, const vql_chain& c) {
    return broken_invariant(ram, c, c.seg, VQL_MAX_SEGS);
}

// The same for a parsed request; @c as vql_blk_parse left it, @verdict what it returned.
inline const char* broken_invariant(const guest_ram& ram, const vql_blk_disk& disk,
                                    const vql_io& io, const vql_blk_answer& answer, int verdict) {
    const bool moves_data = io.op == VQL_OP_READ || io.op == VQL_OP_WRITE;
    uint64_t bytes = 0;

    if (verdict != VQL_BLK_SUBMIT && verdict != VQL_BLK_ANSWERED)
        return "neither submitted nor answered";
    if (io.op >= VQL_OP_COUNT)
        return "unknown operation";
    if (io.status > VQL_STATUS_UNSUPP)
        return "unknown status";
    if (!ram.may_write(answer.status, 1))
        return "status byte outside guest memory, or in read-only memory";
    for (uint32_t i = 0; i < io.nsegs; i++) {
        if (!ram.contains(io.seg[i].base, io.seg[i].bytes))
            return "a data segment outside guest memory";
        bytes += io.seg[i].bytes;
    }
    if (verdict == VQL_BLK_ANSWERED)
        return nullptr;
    if (io.op == VQL_OP_GET_ID || io.op == VQL_OP_OTHER || io.status != VQL_STATUS_OK)
        return "submitted, but there is nothing to execute";
    if (moves_data && bytes != io.bytes)
        return "bytes are not the sum of the data segments";
    if (moves_data && (!io.bytes || io.bytes > VQL_MAX_IO_BYTES))
        return "a transfer of no bytes, or of too many";
    if (io.op == VQL_OP_FLUSH)
        return nullptr;
    if (io.bytes % disk.block_bytes || io.sector % (disk.block_bytes / VQL_SECTOR_BYTES))
        return "not whole blocks";
    if (io.sector > disk.sectors || io.bytes / VQL_SECTOR_BYTES > disk.sectors - io.sector)
        return "beyond the end of the disk";
    if (disk.read_only && io.op != VQL_OP_READ)
        return "a change to a read-only disk";
    return nullptr;
}

} // namespace vql::test
