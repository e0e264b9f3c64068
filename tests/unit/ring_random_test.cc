// SPDX-License-Identifier: GPL-2.0-only
// Properties of vring.h and blk.h over random rings: what a driver encodes is what is parsed, and
// nothing that a driver writes leads outside its memory.
#include "hostile_ring.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <numeric>

using namespace vql::test;

namespace {

// ---- well-formed requests ----

struct run { // bytes that are consecutive here
    const uint8_t* base;
    uint64_t bytes;
    bool operator==(const run&) const = default;
};

void append(std::vector<run>& runs, const uint8_t* base, uint64_t bytes) {
    if (!bytes)
        return;
    if (!runs.empty() && runs.back().base + runs.back().bytes == base)
        runs.back().bytes += bytes;
    else
        runs.push_back({base, bytes});
}

// A request and how it was laid out in guest memory, from the driver's side.
struct encoded {
    uint16_t head;
    uint32_t type;
    uint8_t op;
    uint64_t sector;
    uint64_t bytes;
    uint8_t flags;
    std::vector<run> data;
    const uint8_t* status;
    uint64_t in_bytes;
};

class encoder {
  public:
    encoder(const guest_ram& ram, random_source& random, test_ring& ring, uint64_t disk_sectors)
        : ram_(ram), random_(random), ring_(ring), disk_sectors_(disk_sectors) {
        free_.resize(ring.ring.num);
        std::iota(free_.begin(), free_.end(), uint16_t{0});
        shuffle(free_);
    }

    // Puts a random valid request into the ring's tables. False: no room for it any more.
    bool encode(encoded& e) {
        e = {};
        pick(e);
        std::vector<uint8_t> out(16);
        const vql_blk_hdr h = {e.type, static_cast<uint32_t>(random_.any()), e.sector};
        std::memcpy(out.data(), &h, 16);
        if (e.op == VQL_OP_WRITE)
            out.resize(16 + e.bytes, static_cast<uint8_t>(random_.any()));
        if (e.op == VQL_OP_DISCARD || e.op == VQL_OP_WRITE_ZEROES) {
            const vql_blk_range r = {e.sector, static_cast<uint32_t>(e.bytes / 512),
                                     e.flags ? uint32_t{VQL_BLK_WRITE_ZEROES_F_UNMAP} : 0};
            const auto* p = reinterpret_cast<const uint8_t*>(&r);
            out.insert(out.end(), p, p + sizeof(r));
            const uint64_t unused = random_.any(); // the header's sector means nothing here
            std::memcpy(out.data() + 8, &unused, 8);
        }
        e.in_bytes = (e.op == VQL_OP_READ ? e.bytes : e.op == VQL_OP_GET_ID ? 20 : 0) + 1;

        std::vector<vql_desc> descs;
        std::vector<run> out_runs, in_runs;
        if (!place(out.size(), 0, 16, descs, out_runs) ||
            !place(e.in_bytes, VQL_DESC_F_WRITE, e.in_bytes - 1, descs, in_runs))
            return false;
        uint64_t from = 0;
        for (const run& r : out_runs) {
            std::memcpy(const_cast<uint8_t*>(r.base), out.data() + from, r.bytes);
            from += r.bytes;
        }
        e.status = in_runs.back().base + in_runs.back().bytes - 1;
        if (e.op == VQL_OP_WRITE)
            e.data = cut(out_runs, 16, e.bytes);
        if (e.op == VQL_OP_READ || e.op == VQL_OP_GET_ID)
            e.data = cut(in_runs, 0, e.in_bytes - 1);
        return link(descs, e.head);
    }

  private:
    template <class T>
    void shuffle(std::vector<T>& v) {
        for (size_t i = v.size(); i > 1; i--)
            std::swap(v[i - 1], v[random_.between(0, i - 1)]);
    }

    void pick(encoded& e) {
        constexpr std::array<std::pair<uint32_t, uint8_t>, 6> kinds = {
            {{VQL_BLK_T_IN, VQL_OP_READ},
             {VQL_BLK_T_OUT, VQL_OP_WRITE},
             {VQL_BLK_T_FLUSH, VQL_OP_FLUSH},
             {VQL_BLK_T_DISCARD, VQL_OP_DISCARD},
             {VQL_BLK_T_WRITE_ZEROES, VQL_OP_WRITE_ZEROES},
             {VQL_BLK_T_GET_ID, VQL_OP_GET_ID}}};
        const auto& kind = kinds[random_.one_in(3) ? random_.between(2, 5) : random_.between(0, 1)];
        e.type = kind.first;
        e.op = kind.second;
        if (e.op == VQL_OP_FLUSH || e.op == VQL_OP_GET_ID) {
            e.bytes = e.op == VQL_OP_GET_ID ? 20 : 0;
            return;
        }
        const uint64_t sectors = random_.one_in(4) ? random_.between(1, 64) : random_.between(1, 8);
        e.bytes = sectors * 512;
        e.sector = random_.between(0, disk_sectors_ - sectors);
        if (e.op == VQL_OP_WRITE_ZEROES && random_.one_in(2))
            e.flags = VQL_IO_UNMAP;
    }

    // @bytes in one or more descriptors; @natural is where a plain driver would cut them.
    bool place(uint64_t bytes, uint16_t flags, uint64_t natural, std::vector<vql_desc>& descs,
               std::vector<run>& runs) {
        const uint64_t style = random_.between(0, 3);
        uint64_t done = 0;
        while (done < bytes) {
            uint64_t len = bytes - done;
            if (style == 0 && done < natural) // header, data, status
                len = natural - done;
            else if (style == 1) // a few odd pieces
                len = std::min(len, random_.between(1, bytes / 3 + 1));
            else if (style == 2 && done < 40) // crumbs in front
                len = std::min(len, random_.between(1, 4));
            // style 3: all in one
            if (random_.one_in(16))
                descs.push_back({random_.any(), 0, flags, 0}); // holds nothing, wherever it points
            const uint64_t at = allocate(len);
            if (!at)
                return false;
            descs.push_back({at, static_cast<uint32_t>(len), flags, 0});
            for (uint64_t i = 0; i < len; i++)
                append(runs, ram_.at(at + i), 1);
            done += len;
        }
        return true;
    }

    // The piece of @runs from byte @from on, @bytes long.
    static std::vector<run> cut(const std::vector<run>& runs, uint64_t from, uint64_t bytes) {
        std::vector<run> piece;
        for (const run& r : runs) {
            const uint64_t skip = std::min(from, r.bytes);
            const uint64_t take = std::min(r.bytes - skip, bytes);
            append(piece, r.base + skip, take);
            from -= skip;
            bytes -= take;
        }
        return piece;
    }

    // Room in one of the two zones of guest memory; any alignment, often just behind the last one.
    uint64_t allocate(uint64_t bytes) {
        for (int tries = 0; tries < 2; tries++) {
            zone& z = zones_[random_.between(0, 1)];
            const uint64_t at = z.next + (random_.one_in(2) ? random_.between(0, 40) : 0);
            if (at + bytes <= z.end) {
                z.next = at + bytes;
                return at;
            }
        }
        return 0;
    }

    // Chains @descs: in the ring, in an indirect table, or first in the one and then in the other.
    bool link(std::vector<vql_desc>& descs, uint16_t& head) {
        if (ring_.ring.indirect && !random_.one_in(3)) {
            const size_t direct = random_.one_in(3) ? random_.between(0, descs.size() - 1) : 0;
            const size_t used = descs.size() - direct;
            const size_t entries = used + (random_.one_in(4) ? random_.between(1, 9) : 0);
            std::vector<vql_desc> t(entries);
            std::vector<uint16_t> order(entries);
            std::iota(order.begin(), order.end(), uint16_t{0});
            if (random_.one_in(2)) { // entry 0 is always the first one
                std::vector<uint16_t> rest(order.begin() + 1, order.end());
                shuffle(rest);
                std::copy(rest.begin(), rest.end(), order.begin() + 1);
            }
            for (size_t i = 0; i < entries; i++) {
                vql_desc& d = t[order[i]];
                if (i >= used) {
                    d = {random_.any(), 7, 7, 7}; // nothing refers to it
                    continue;
                }
                d = descs[direct + i];
                d.next = static_cast<uint16_t>(random_.any());
                if (i + 1 < used) {
                    d.flags |= VQL_DESC_F_NEXT;
                    d.next = order[i + 1];
                }
            }
            const uint64_t table = allocate(entries * sizeof(vql_desc));
            if (!table)
                return false;
            ram_.write(table, t.data(), entries * sizeof(vql_desc));
            descs.resize(direct);
            descs.push_back(
                {table, static_cast<uint32_t>(entries * sizeof(vql_desc)), VQL_DESC_F_INDIRECT, 0});
        }
        if (descs.size() > free_.size())
            return false;
        for (size_t i = 0; i < descs.size(); i++) {
            const uint16_t at = free_.back();
            free_.pop_back();
            if (i == 0)
                head = at;
            vql_desc d = descs[i];
            if (i + 1 < descs.size()) {
                d.flags |= VQL_DESC_F_NEXT;
                d.next = free_.back();
            }
            ring_.set_desc(at, d);
        }
        return true;
    }

    struct zone {
        uint64_t next, end;
    };

    const guest_ram& ram_;
    random_source& random_;
    test_ring& ring_;
    uint64_t disk_sectors_;
    std::vector<uint16_t> free_;
    zone zones_[2] = {{0x10000, 0x90000}, {0x200000, 0x240000}};
};

const char* difference(const encoded& e, const vql_io& io, const vql_blk_answer& answer,
                       int verdict) {
    std::vector<run> data;
    for (uint32_t i = 0; i < io.nsegs; i++)
        append(data, static_cast<const uint8_t*>(io.seg[i].base), io.seg[i].bytes);
    if (verdict != (e.op == VQL_OP_GET_ID ? VQL_BLK_ANSWERED : VQL_BLK_SUBMIT))
        return "verdict";
    if (io.op != e.op)
        return "op";
    if (io.status != VQL_STATUS_OK)
        return "status";
    if (e.op != VQL_OP_GET_ID && io.sector != e.sector)
        return "sector";
    if (io.bytes != e.bytes)
        return "bytes";
    if (io.flags != e.flags)
        return "flags";
    if (data != e.data)
        return "data segments";
    if (answer.status != e.status)
        return "status byte";
    return nullptr;
}

// ---- hostile rings ----

constexpr uint64_t hostile_low = 0x1000, hostile_far = 0x5000, hostile_read_only = 0x6000;

uint64_t hostile_address(random_source& r) {
    constexpr std::array<uint64_t, 8> edges = {0x1000, 0x2000, 0x3000, 0x5000,
                                               0x6000, 0x7000, 0,      1ull << 63};
    if (r.one_in(20))
        return r.any();
    if (r.one_in(4))
        return edges[r.between(0, edges.size() - 1)] + r.between(0, 64) - 32; // may wrap: it should
    if (r.one_in(16))
        return hostile_read_only + r.between(0, 0xfff);
    return r.one_in(3) ? hostile_far + r.between(0, 0xfff) : hostile_low + r.between(0, 0x1fff);
}

vql_desc hostile_desc(random_source& r, uint16_t entries, bool mostly_good) {
    vql_desc d{};
    d.addr = hostile_address(r);
    switch (r.between(0, 7)) {
    case 0: d.len = 0; break;
    case 1: d.len = 16; break;
    case 2: d.len = static_cast<uint32_t>(16 * r.between(1, 40)); break;
    case 3: d.len = static_cast<uint32_t>(512 * r.between(1, 9)); break;
    case 4: d.len = mostly_good ? 1 : static_cast<uint32_t>(r.any()); break;
    default: d.len = static_cast<uint32_t>(r.between(1, 600)); break;
    }
    d.flags = static_cast<uint16_t>(r.one_in(8) ? r.any() : r.between(0, 3));
    if (mostly_good && r.one_in(2))
        d.flags &= VQL_DESC_F_NEXT | VQL_DESC_F_WRITE;
    if (!mostly_good && r.one_in(4))
        d.flags = VQL_DESC_F_INDIRECT;
    d.next = static_cast<uint16_t>(r.one_in(12) ? r.any() : r.between(0, entries - 1u));
    return d;
}

void fill_hostile(const guest_ram& ram, test_ring& t, random_source& r) {
    const bool noise = r.one_in(10), mostly_good = r.one_in(2);
    for (const vql_region& region : ram.regions())
        for (uint64_t at = 0; at + 16 <= region.bytes; at += 16) { // tables and headers everywhere
            const auto type =
                static_cast<uint32_t>(r.one_in(2) ? r.between(0, 1) : r.between(0, 14));
            const vql_blk_hdr h = {type, 0, r.between(0, 99)};
            const vql_desc d = hostile_desc(r, 16, mostly_good);
            std::memcpy(region.host + at,
                        r.between(0, 3) < (mostly_good ? 3 : 1) ? static_cast<const void*>(&h) : &d,
                        16);
        }
    for (uint16_t i = 0; i < t.ring.num; i++) {
        vql_desc d = hostile_desc(r, t.ring.num, mostly_good);
        if (mostly_good && !r.one_in(6)) { // header, data and status, as a driver would
            const auto way = static_cast<uint16_t>(r.one_in(3) ? 0 : VQL_DESC_F_WRITE);
            const auto next = static_cast<uint16_t>(i + 1);
            if (!r.one_in(8))
                d.addr = hostile_low + r.between(0, 0x1fff) / 16 * 16;
            d.len |= 512;
            if (i % 3 == 0)
                d = {d.addr, 16, VQL_DESC_F_NEXT, next};
            else if (i % 3 == 1)
                d = {d.addr, d.len / 512 * 512, static_cast<uint16_t>(VQL_DESC_F_NEXT | way), next};
            else
                d = {d.addr, 1, VQL_DESC_F_WRITE, next};
        }
        if (noise)
            d = {r.any(), static_cast<uint32_t>(r.any()), static_cast<uint16_t>(r.any()),
                 static_cast<uint16_t>(r.any())};
        t.set_desc(i, d);
    }
    for (uint64_t i = 0; i < vql_avail_bytes(t.ring.num) / 2; i++) {
        auto value = static_cast<uint16_t>(r.one_in(20) ? r.any() : r.between(0, t.ring.num));
        if (mostly_good && !r.one_in(4))
            value = static_cast<uint16_t>(value / 3 * 3);
        std::memcpy(t.avail_bytes() + 2 * i, &value, 2);
    }
}

// All descriptors become one indirect table, over two pages, of a request with hundreds of
// segments.
void fill_long_table(const guest_ram& ram, test_ring& t, random_source& r) {
    const auto entries = static_cast<uint16_t>(r.between(VQL_MAX_SEGS, 512));
    const bool in = r.one_in(2);
    const vql_blk_hdr h = {in ? VQL_BLK_T_IN : VQL_BLK_T_OUT, 0, 0};
    ram.write(0x5000, &h, sizeof(h));
    for (uint16_t i = 0; i < entries; i++) {
        const auto flags = static_cast<uint16_t>(VQL_DESC_F_NEXT | (in ? VQL_DESC_F_WRITE : 0));
        vql_desc d = {0x5010 + r.between(0, 0xd00), 512, flags, static_cast<uint16_t>(i + 1)};
        if (r.one_in(200))
            d.len = static_cast<uint32_t>(r.between(0, 600));
        if (i == 0)
            d = {0x5000, 16, VQL_DESC_F_NEXT, 1};
        else if (i + 1 == entries)
            d = {0x5008, 1, VQL_DESC_F_WRITE, 0};
        ram.write(0x1000 + 16u * i, &d, sizeof(d));
    }
    for (uint16_t i = 0; i < t.ring.num; i++)
        t.set_desc(i, 0x1000, 16u * entries, VQL_DESC_F_INDIRECT);
}

} // namespace

TEST_CASE("random: what a driver encodes is what is parsed", "[vring][blk][random]") {
    const guest_ram ram({{0x10000, 0x40000}, {0x50000, 0x40000}, {0x200000, 0x40000}});
    random_source random(10);
    vql_blk_disk disk{};
    disk.sectors = 100000;
    disk.block_bytes = 512;
    disk.discard = disk.write_zeroes = disk.unmap = true;
    auto chain = std::make_unique<vql_chain>();
    uint64_t parsed = 0, straddling = 0, taken_plain = 0;

    while (parsed < 20000) {
        test_ring t(static_cast<uint16_t>(1u << random.between(1, 10)), random.one_in(2));
        encoder driver(ram, random, t, disk.sectors);
        std::vector<encoded> requests;
        const auto start = static_cast<uint16_t>(random.any());
        t.ring.avail->idx = t.ring.next_avail = start;
        for (encoded e; requests.size() < t.ring.num && driver.encode(e);) {
            t.offer(e.head);
            requests.push_back(e);
        }
        REQUIRE(vql_ring_pending(&t.ring) == static_cast<int>(requests.size()));
        vql_mem m = ram.mem();
        for (const encoded& e : requests) {
            const uint16_t head = vql_ring_peek(&t.ring);
            const plain_take plain(t.ring, m, head, disk);
            const int err = vql_chain_walk(&t.ring, &m, head, chain.get());
            CAPTURE(run_seed(), parsed, e.type, e.bytes);
            if (head != e.head || err)
                FAIL("head " << head << ", " << vql_ring_error_text(-err));
            if (const char* broken = broken_invariant(ram, *chain))
                FAIL(broken);
            vql_io io;
            vql_blk_answer answer{};
            const int verdict = vql_blk_parse(chain.get(), &disk, &io, &answer);
            if (const char* what = difference(e, io, answer, verdict))
                FAIL(what << " differs from what was encoded");
            if (plain.differs(verdict, io, answer))
                FAIL("the short way makes another request of it");
            taken_plain += plain.taken();
            const bool fails = e.op != VQL_OP_GET_ID && random.one_in(4);
            if (fails)
                io.status = VQL_STATUS_IOERR;
            const uint32_t len = vql_blk_finish(&io, &answer);
            if (*e.status != (fails ? VQL_STATUS_IOERR : VQL_STATUS_OK))
                FAIL("status was not written");
            if (len != (fails && e.in_bytes > 1 ? 0 : e.in_bytes))
                FAIL("used.len " << len);
            straddling += e.data.size() > 1;
            t.ring.next_avail++;
            parsed++;
        }
    }
    CHECK(taken_plain > 100);
    CHECK(straddling > 100); // else the generator does not do its work
}

TEST_CASE("random: the short way says of a request what the long one does, or nothing",
          "[vring][blk][random]") {
    // Header, data and status in one of these, often near its end.
    const std::vector<piece> pieces = {
        {0x10000, 0x3000}, {0x13000, 0x1000}, {0x20000, 0x3000, VQL_MEM_READ_ONLY}};
    const guest_ram ram(pieces);
    random_source random(12);
    auto chain = std::make_unique<vql_chain>();
    unsigned taken = 0, left = 0;
    for (int round = 0; round < 100000; round++) {
        const bool indirect = random.one_in(2);
        test_ring t(8, random.one_in(2), indirect || random.one_in(2));
        const auto odd = [&] { return random.one_in(40); };
        const piece& home = pieces[random.one_in(8) ? random.between(1, 2) : 0];
        const auto somewhere = [&](uint64_t bytes) {
            const piece& here = odd() ? pieces[random.between(0, 2)] : home;
            if (odd())
                return random.any();
            const uint64_t last = here.guest + here.bytes - std::min(bytes, here.bytes);
            return random.one_in(3) ? last - random.between(0, 2) + random.one_in(8)
                                    : random.between(here.guest, last);
        };
        const bool in = random.one_in(2);
        vql_blk_hdr header{in == !odd() ? VQL_BLK_T_IN : VQL_BLK_T_OUT, uint32_t(random.any()),
                           random.between(0, 100)};
        if (odd())
            header.type = uint32_t(random.between(0, 14));
        std::array<vql_desc, 3> d{};
        const uint32_t bytes =
            odd() ? uint32_t(random.any()) : uint32_t(512 * random.between(0, 12));
        const std::array<uint32_t, 3> lens = {odd() ? 15u + 2 * random.one_in(2) : 16u, bytes,
                                              odd() ? uint32_t(random.between(0, 2)) : 1u};
        const std::array<uint16_t, 3> flags = {
            VQL_DESC_F_NEXT, uint16_t(VQL_DESC_F_NEXT | (in ? VQL_DESC_F_WRITE : 0)),
            VQL_DESC_F_WRITE};
        for (size_t i = 0; i < 3; i++) {
            d[i].len = lens[i];
            d[i].addr = somewhere(lens[i]);
            d[i].flags = odd() ? uint16_t(random.between(0, 15)) : flags[i];
            d[i].next = odd() ? uint16_t(random.between(0, 10)) : uint16_t(i + 1);
        }
        if (ram.contains(ram.at(d[0].addr), sizeof(header)))
            ram.write(d[0].addr, &header, sizeof(header));
        if (indirect) {
            const uint64_t table = somewhere(sizeof(d));
            if (ram.at(table) && ram.contains(ram.at(table), sizeof(d)))
                ram.write(table, d.data(), sizeof(d));
            t.set_desc(0, table, odd() ? 64 : sizeof(d), VQL_DESC_F_INDIRECT | (odd() ? 1 : 0));
        } else {
            for (size_t i = 0; i < 3; i++)
                t.set_desc(uint32_t(i), d[i].addr, d[i].len, d[i].flags, d[i].next);
        }
        vql_blk_disk disk{};
        disk.sectors = random.between(0, 110);
        disk.block_bytes = random.one_in(4) ? 4096 : 512;
        disk.read_only = random.one_in(8);
        vql_mem m = ram.mem();
        m.hint = uint32_t(random.one_in(8) ? random.between(0, 4) : &home - pieces.data());
        const auto head = uint16_t(odd() ? random.between(0, 9) : 0);
        const plain_take plain(t.ring, m, head, disk);
        (plain.taken() ? taken : left)++;
        if (!plain.taken())
            continue;
        vql_io io;
        vql_blk_answer answer{};
        CAPTURE(run_seed(), round);
        const int err = vql_chain_walk(&t.ring, &m, head, chain.get());
        if (err)
            FAIL("taken, though " << vql_ring_error_text(-err));
        if (plain.differs(vql_blk_parse(chain.get(), &disk, &io, &answer), io, answer))
            FAIL("it makes another request of it");
    }
    CHECK(taken > 5000);
    CHECK(left > 5000);
}

TEST_CASE("random: no hostile ring leads outside guest memory, and each gets a verdict",
          "[vring][blk][random]") {
    const guest_ram ram({{0x1000, 0x1000},
                         {0x2000, 0x1000},
                         {0x5000, 0x1000},
                         {0x6000, 0x1000, VQL_MEM_READ_ONLY}});
    random_source random(11);
    std::array<unsigned, VQL_RING_ERRORS> stopped{};
    unsigned submitted = 0, answered = 0, large = 0;
    for (int round = 0; round < 4000; round++) {
        test_ring t(static_cast<uint16_t>(1u << random.between(1, 6)), !random.one_in(4),
                    random.one_in(2));
        fill_hostile(ram, t, random);
        if (random.one_in(10))
            fill_long_table(ram, t, random);
        vql_blk_disk disk{};
        disk.sectors = random.between(0, random.one_in(4) ? 2000 : 120);
        disk.block_bytes = random.one_in(4) ? 4096 : 512;
        disk.read_only = random.one_in(4);
        disk.discard = disk.write_zeroes = random.one_in(2);
        disk.unmap = random.one_in(2);
        if (random.one_in(2)) // close enough to be served
            t.ring.next_avail =
                static_cast<uint16_t>(t.ring.avail->idx - random.between(0, t.ring.num));
        CAPTURE(run_seed(), round);
        const served s = serve_all(ram, t, disk, 1 + static_cast<unsigned>(random.between(0, 7)));
        if (s.broken)
            FAIL(s.broken);
        stopped[static_cast<size_t>(s.stopped)]++;
        submitted += s.submitted;
        answered += s.answered;
        large += s.large;
    }
    // A generator that never gets far, or never does wrong, proves nothing.
    for (size_t e = 0; e < VQL_RING_ERRORS; e++) {
        CAPTURE(vql_ring_error_text(static_cast<int>(e)));
        // 4 GiB do not fit into this memory; vring_test.cc has that case.
        if (e != VQL_RING_BAD_LENGTH)
            CHECK(stopped[e] > 0);
    }
    CHECK(submitted > 20);
    CHECK(answered > 100);
    CHECK(large > 20);
}
