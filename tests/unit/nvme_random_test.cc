// SPDX-License-Identifier: GPL-2.0-only
// The NVMe engine against a plain model of disk and memory: any shape of data, any controller, any
// order; and what is left when the queue pair is lost under it.
#include "nvme_rig.h"

#include <array>
#include <atomic>
#include <catch2/generators/catch_generators.hpp>
#include <csignal>
#include <sys/mman.h>
#include <thread>

using namespace vql;
using namespace vql::test;

namespace {

struct job {
    vql::piece p;
    std::vector<vql_seg> segs;
};

// A disk and a guest's memory as they have to be, beside those that are.
class differential {
  public:
    differential(const nvme_model::options& o, random_source& random)
        : r(o), random_(random), memory_(nvme_rig::guest_bytes), disk_(r.model.disk().size()) {
        fill(disk_);
        r.model.disk() = disk_;
    }

    // Pieces that do not touch each other, all at once; then everything is compared.
    void round() {
        fill(memory_);
        std::memcpy(r.guest(), memory_.data(), memory_.size());
        make_jobs();
        size_t submitted = 0;
        for (int idle = 0; submitted < jobs_.size() || r.engine.in_flight(); idle++) {
            REQUIRE(idle < 100000);
            while (submitted < jobs_.size() && r.engine.submit(jobs_[submitted].p))
                submitted++;
            if (r.engine.retry_at() <= (r.now += nvme_rig::ms))
                r.engine.retry(r.now);
            r.engine.flush();
            r.model.fetch();
            r.model.complete(random_.between(0, r.options.depth));
            if (losses && random_.one_in(20)) {
                losses--;
                r.model.lose(random_.one_in(2));
                r.engine.reap();
                r.engine.flush();
                REQUIRE(r.engine.lost());
                if (random_.one_in(2) && submitted < jobs_.size() && // meanwhile it takes more
                    r.engine.submit(jobs_[submitted].p))
                    submitted++;
                answer();
                r.engine.replace(r.model.queue());
                continue;
            }
            r.engine.reap();
            answer();
        }
        REQUIRE(std::memcmp(r.guest(), memory_.data(), memory_.size()) == 0);
        REQUIRE(r.model.disk() == disk_);
        REQUIRE(r.model.violations().empty());
    }

    nvme_rig r;
    int losses = 0;

  private:
    void fill(std::vector<uint8_t>& bytes) {
        for (size_t i = 0; i < bytes.size(); i += 8) {
            const uint64_t word = random_.any();
            std::memcpy(bytes.data() + i, &word, 8);
        }
    }

    void make_jobs() {
        jobs_.clear();
        jobs_.reserve(24);
        memory_used_ = 0;
        uint64_t lba = 0;
        while (jobs_.size() < 24) {
            job& j = jobs_.emplace_back();
            const auto op = std::array{VQL_OP_READ,  VQL_OP_READ,         VQL_OP_WRITE,
                                       VQL_OP_WRITE, VQL_OP_WRITE_ZEROES, VQL_OP_DISCARD,
                                       VQL_OP_FLUSH}[random_.between(0, 6)];
            uint64_t blocks = random_.one_in(3)
                                  ? random_.between(1, (600 << 10) / r.options.block_bytes)
                                  : random_.between(1, 16);
            lba += random_.between(0, 40);
            blocks = std::min(blocks, r.options.blocks - std::min(lba, r.options.blocks));
            if (op == VQL_OP_FLUSH)
                blocks = 0;
            else if (!blocks || !scatter(j, blocks * r.options.block_bytes))
                return jobs_.pop_back();
            j.p = r.make(jobs_.size() - 1, op, lba, blocks, j.segs);
            j.p.skip = op == VQL_OP_READ || op == VQL_OP_WRITE ? skip_ : 0;
            j.p.durable = random_.one_in(4);
            j.p.flags = op == VQL_OP_WRITE_ZEROES && random_.one_in(2) ? VQL_IO_UNMAP : 0;
            lba += blocks;
        }
    }

    // Spread @bytes over guest memory in one of many manners. False: there is not enough left.
    bool scatter(job& j, uint64_t bytes) {
        const uint64_t kind = random_.between(0, 6);
        // Multiples of this, for addresses and for lengths.
        const uint64_t unit = std::array<uint64_t, 7>{4096, 512, 4, 1, 1, 8, 2048}[kind];
        skip_ = random_.one_in(3) ? unit * random_.between(1, 8) : 0; // an earlier piece's
        uint64_t left = bytes + skip_;
        for (int n = 1; left; n++) {
            uint64_t here = left;
            if (n < 250 && !random_.one_in(6))
                here = std::min(left, unit * random_.between(1, kind == 4 ? 3 : 40));
            uint64_t at = memory_used_ + (random_.one_in(2) ? random_.between(0, 6000) : 0);
            at = (at + unit - 1) / unit * unit;
            if (kind == 6) // whole pages but for the first
                at = at / 4096 * 4096 + (n == 1 ? 2048 : 4096);
            if (at + here > nvme_rig::guest_bytes)
                return false;
            if (random_.one_in(12))
                j.segs.push_back({r.guest() + at, 0}); // an empty one
            j.segs.push_back({r.guest() + at, here});
            memory_used_ = at + here;
            left -= here;
        }
        if (skip_ && j.segs[0].bytes <= skip_) // an earlier piece ends inside the first segment
            skip_ = 0;
        return true;
    }

    // What is answered takes effect in what has to be.
    void answer() {
        for (const auto& [id, status] : r.collect()) {
            const job& j = jobs_[id];
            const vql::piece& p = j.p;
            const uint64_t block = r.options.block_bytes;
            if (p.op == VQL_OP_DISCARD && !r.options.discard) {
                REQUIRE(status == VQL_STATUS_UNSUPP);
                continue;
            }
            REQUIRE(status == VQL_STATUS_OK);
            if (p.op == VQL_OP_FLUSH)
                continue;
            REQUIRE_FALSE(r.model.touches(p.offset / block, p.bytes / block));
            if (p.durable && p.op != VQL_OP_READ)
                REQUIRE(r.model.unstable(p.offset / block, p.bytes / block) == 0);
            uint8_t* const on_disk = disk_.data() + p.offset;
            if (p.op == VQL_OP_DISCARD || p.op == VQL_OP_WRITE_ZEROES) {
                std::memset(on_disk, 0, p.bytes);
                continue;
            }
            uint64_t done = 0, skip = p.skip;
            for (const vql_seg& s : j.segs) {
                const uint64_t n =
                    std::min<uint64_t>(s.bytes - std::min<uint64_t>(skip, s.bytes), p.bytes - done);
                const auto at = uint64_t(static_cast<uint8_t*>(s.base) - r.guest()) + skip;
                if (p.op == VQL_OP_READ)
                    std::memcpy(memory_.data() + at, on_disk + done, n);
                else
                    std::memcpy(on_disk + done, memory_.data() + at, n);
                done += n;
                skip = 0;
            }
        }
    }

    random_source& random_;
    std::vector<uint8_t> memory_, disk_;
    std::vector<job> jobs_;
    uint64_t memory_used_ = 0;
    uint64_t skip_ = 0;
};

nvme_model::options any_controller(random_source& random) {
    nvme_model::options o;
    o.block_bytes = random.one_in(2) ? 512 : 4096;
    o.blocks = (8 << 20) / o.block_bytes;
    o.nsid = uint32_t(random.between(1, 5));
    o.boundary_blocks = random.one_in(2) ? 0 : uint32_t(random.between(1, 300));
    o.max_transfer = 4096u << random.between(0, 8);
    o.max_zeroes = random.one_in(2) ? 0 : 4096u << random.between(0, 10);
    o.max_discard = random.one_in(2) ? 0 : uint32_t(random.between(1, 2000));
    o.depth = uint32_t(random.one_in(3) ? random.between(2, 5) : random.between(6, 256));
    o.bounce_pages = uint32_t(random.one_in(3) ? 1 : random.between(2, 40));
    o.sgl = random.one_in(2);
    o.shadow = random.one_in(2);
    o.volatile_cache = !random.one_in(3);
    o.write_zeroes = !random.one_in(3);
    o.discard = !random.one_in(3);
    o.shuffle = random.one_in(3) ? 0 : random.any();
    return o;
}

// ---- memory that is taken away while it is looked at ----

struct taken_away {
    uint8_t* at;
    size_t bytes;
    nvme_model* model;
    volatile sig_atomic_t faults;
};
taken_away taken; // NOLINT: a signal handler's

// As the module does it: the state word first, then the pages; and as the daemon's guard does it:
// zeroes in their place.
void take(int) {
    taken.model->set_state(1);
    ::mprotect(taken.at, taken.bytes, PROT_READ | PROT_WRITE);
    std::memset(taken.at, 0, taken.bytes);
    taken.faults = taken.faults + 1;
}

class take_on_touch {
  public:
    take_on_touch(void* at, size_t bytes, nvme_model& model) {
        taken = {static_cast<uint8_t*>(at), bytes, &model, 0};
        struct sigaction action {};
        action.sa_handler = take;
        ::sigaction(SIGSEGV, &action, &before_);
        REQUIRE(::mprotect(at, bytes, PROT_NONE) == 0);
    }
    ~take_on_touch() {
        ::mprotect(taken.at, taken.bytes, PROT_READ | PROT_WRITE);
        ::sigaction(SIGSEGV, &before_, nullptr);
    }
    static int faults() { return taken.faults; }

  private:
    struct sigaction before_ {};
};

} // namespace

TEST_CASE("nvme: any shape of data on any controller moves what it should and nothing else") {
    random_source random(910);
    nvme_model::counters all;
    for (int i = 0; i < 12; i++) {
        nvme_model::options o = any_controller(random);
        o.sgl = i % 2;
        CAPTURE(i, o.block_bytes, o.boundary_blocks, o.max_transfer, o.depth, o.bounce_pages, o.sgl,
                o.shadow, o.volatile_cache, o.write_zeroes, o.discard, o.shuffle);
        differential d(o, random);
        for (int n = 0; n < 3; n++)
            d.round();
        all.sgl += d.r.model.count().sgl;
        all.lists += d.r.model.count().lists;
        all.pool_data += d.r.model.count().pool_data;
        all.deallocated += d.r.model.count().deallocated;
    }
    // All ways were taken.
    CHECK(all.sgl);
    CHECK(all.lists);
    CHECK(all.pool_data);
    CHECK(all.deallocated);
}

TEST_CASE("nvme: queue pairs that are lost in between change no result") {
    random_source random(911);
    for (int i = 0; i < 8; i++) {
        const nvme_model::options o = any_controller(random);
        CAPTURE(i, o.block_bytes, o.max_transfer, o.depth, o.sgl, o.shadow, o.shuffle);
        differential d(o, random);
        for (int n = 0; n < 3; n++) {
            d.losses = 4;
            d.round();
        }
    }
}

TEST_CASE("nvme: commands that fail for now change no result, whatever else happens") {
    random_source random(912);
    uint64_t failed = 0;
    for (int i = 0; i < 8; i++) {
        nvme_model::options o = any_controller(random);
        o.crdt = {1, 2, 3};
        CAPTURE(i, o.block_bytes, o.max_transfer, o.depth, o.bounce_pages, o.sgl, o.shadow,
                o.write_zeroes, o.shuffle);
        differential d(o, random);
        d.r.model.inject = [&](const vql_nvme_sqe&) -> uint32_t {
            // One in twelve: six in a row, which would be final, are one in three million.
            if (!random.one_in(12))
                return 0;
            failed++;
            return std::array<uint32_t, 5>{0x007, 0x021, 0x082, 0x281,
                                           0x303}[random.between(0, 4)] |
                   uint32_t(random.between(0, 3)) << 11 | nvme_model::for_now;
        };
        for (int n = 0; n < 3; n++) {
            d.losses = i % 2 ? 2 : 0;
            d.round();
        }
    }
    CHECK(failed > 100);
}

TEST_CASE("nvme: a lost queue pair finishes nothing, and a new one everything") {
    nvme_rig r({.max_transfer = 8192, .depth = 8});
    const std::vector<vql_seg> large = {{r.guest(), 1 << 20}}, small = {{r.guest(), 512}};
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_WRITE, 0, 2048, large)));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_WRITE, 4096, 1, small)));
    r.engine.flush();
    r.model.fetch();
    r.model.complete(3);
    r.engine.reap();
    r.engine.flush();
    r.model.lose(true);
    r.engine.reap();
    REQUIRE(r.engine.submit(r.make(3, VQL_OP_READ, 8192, 1, small))); // taken, and kept
    r.engine.flush();
    CHECK(r.engine.done().empty());
    CHECK(r.engine.in_flight() == 3);
    r.engine.replace(r.model.queue());
    const auto done = r.run();
    CHECK(done.size() == 3);
    for (const auto& [id, status] : done)
        CHECK(status == VQL_STATUS_OK);
}

TEST_CASE("nvme: what was not finished is given back once, as it was submitted") {
    nvme_rig r({.max_transfer = 8192, .depth = 8});
    const std::vector<vql_seg> large = {{r.guest(), 1 << 20}}, small = {{r.guest(), 512}};
    const vql::piece first = r.make(1, VQL_OP_WRITE, 0, 2048, large);
    REQUIRE(r.engine.submit(r.make(0, VQL_OP_READ, 9000, 1, small)));
    r.engine.flush();
    r.model.drain();
    REQUIRE(r.engine.submit(first));
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_FLUSH, 0, 0)));
    r.engine.flush();
    r.engine.reap(); // number 0 is done
    r.model.fetch();
    r.model.complete(3);
    r.engine.reap();
    r.model.lose(false);
    auto given = r.engine.take_unfinished();
    REQUIRE(given.size() == 2);
    std::sort(given.begin(), given.end(),
              [](const vql::piece& a, const vql::piece& b) { return a.owner < b.owner; });
    CHECK(given[0].owner == first.owner);
    CHECK(given[0].offset == 0);
    CHECK(given[0].bytes == 1 << 20);
    CHECK(given[0].seg == large.data());
    CHECK(given[0].skip == 0);
    CHECK(given[1].op == VQL_OP_FLUSH);
    CHECK(r.engine.in_flight() == 1);
    CHECK(r.collect() == std::map<uint64_t, vql_status>{{0, VQL_STATUS_OK}});
    CHECK(r.engine.take_unfinished().empty());
    CHECK(r.engine.in_flight() == 0);
    // It can be used again.
    r.engine.replace(r.model.queue());
    CHECK(r.run_one(first) == VQL_STATUS_OK);
}

TEST_CASE("nvme: a piece that had failed when the queue pair was lost is not done again") {
    nvme_rig r({.max_transfer = 8192});
    const std::vector<vql_seg> large = {{r.guest(), 1 << 20}};
    r.model.inject = [](const vql_nvme_sqe&) { return VQL_NVME_SC_UNRECOVERED_READ; };
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 2048, large)));
    r.engine.flush();
    r.model.fetch();
    r.model.complete(1);
    r.engine.reap();
    CHECK(r.engine.done().empty());
    r.model.lose(false);
    r.engine.replace(r.model.queue());
    r.engine.flush();
    CHECK(r.model.fetch() == 0);
    CHECK(r.run() == std::map<uint64_t, vql_status>{{1, VQL_STATUS_IOERR}});
}

TEST_CASE("nvme: commands that end with their queue's deletion are unfinished, not failed") {
    nvme_rig r;
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    r.model.inject = [](const vql_nvme_sqe&) { return 0x08; };
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 0, 1, data)));
    r.engine.flush();
    r.model.drain();
    r.engine.reap();
    CHECK(r.engine.done().empty());
    r.model.lose(false);
    REQUIRE(r.engine.submit(r.make(2, VQL_OP_READ, 0, 1, data)));
    for (uint32_t i = 0; i < r.options.depth; i++) // memory of a lost queue is let alone
        CHECK(r.model.sq()[i].nsid == 0);
    r.model.inject = nullptr;
    r.engine.replace(r.model.queue());
    CHECK(r.run() == std::map<uint64_t, vql_status>{{1, VQL_STATUS_OK}, {2, VQL_STATUS_OK}});
    CHECK(r.where.errors == 0);
}

TEST_CASE("nvme: zeroes in place of a lost completion queue are no completion") {
    // Where all-zero looks like a success: identifier 0, in a pass whose phase bit is 0.
    nvme_rig r({.depth = 3});
    const std::vector<vql_seg> data = {{r.guest(), 512}};
    for (uint64_t i = 0; i < 64; i++)
        REQUIRE(r.run_one(r.make(i, VQL_OP_READ, i, 1, data)) == VQL_STATUS_OK);
    REQUIRE(r.engine.submit(r.make(99, VQL_OP_READ, 7, 1, data)));
    r.engine.flush();
    r.model.fetch();
    REQUIRE(r.model.under_way().at(0).cid == 0);
    {
        take_on_touch cq(r.model.cq(), r.model.cq_bytes(), r.model);
        r.engine.reap();
        REQUIRE(take_on_touch::faults() == 1);
    }
    CHECK(r.engine.done().empty());
    CHECK(r.engine.in_flight() == 1);
    r.model.lose(false);
    r.engine.replace(r.model.queue());
    CHECK(r.run() == std::map<uint64_t, vql_status>{{99, VQL_STATUS_OK}});
}

TEST_CASE("nvme: zeroes in place of a lost pool are not handed to the guest as data") {
    nvme_rig r;
    const std::vector<vql_seg> odd = {{r.guest() + 1, 512}};
    std::memset(r.model.block(7), 0x77, 512);
    REQUIRE(r.engine.submit(r.make(1, VQL_OP_READ, 7, 1, odd)));
    r.engine.flush();
    r.model.drain(); // it is done, and the completion is there
    {
        take_on_touch pool(r.model.pool(), r.model.pool_bytes(), r.model);
        r.engine.reap();
        REQUIRE(take_on_touch::faults() == 1);
    }
    CHECK(r.engine.done().empty());
    r.model.lose(false);
    r.engine.replace(r.model.queue());
    CHECK(r.run() == std::map<uint64_t, vql_status>{{1, VQL_STATUS_OK}});
    CHECK(std::memcmp(r.guest() + 1, r.model.block(7), 512) == 0);
}

TEST_CASE("nvme: engine and controller on threads of their own", "[nvme][threads]") {
    nvme_rig r({.depth = GENERATE(2u, 32u),
                .bounce_pages = 4,
                .sgl = false,
                .shadow = GENERATE(false, true),
                .shuffle = GENERATE(0u, 5u)});
    constexpr uint64_t count = 5000, places = 64;
    std::atomic<bool> stop{false};
    std::thread device([&] { r.model.run(stop); });

    // Each place of the disk has a word in memory; written and read back in turns, at odd addresses
    // in every third place.
    std::array<std::vector<vql_seg>, places> segs;
    std::array<uint64_t, places> turn{};
    std::array<bool, places> busy{};
    for (uint64_t i = 0; i < places; i++)
        segs[i] = {{r.guest() + i * 8192 + (i % 3 ? 0 : 1), 512}};
    uint64_t submitted = 0, done = 0, wrong = 0;
    while (done < count) {
        for (uint64_t i = 0; i < places && submitted < count; i++) {
            if (busy[i])
                continue;
            const bool write = turn[i] % 2 == 0;
            std::memset(segs[i][0].base, write ? int(turn[i] & 0xff) : 0xee, 512);
            if (!r.engine.submit(r.make(i, write ? VQL_OP_WRITE : VQL_OP_READ, i, 1, segs[i])))
                break;
            busy[i] = true;
            submitted++;
        }
        r.engine.flush();
        r.engine.reap();
        for (const auto& f : r.engine.done()) {
            const uint64_t i = reinterpret_cast<uintptr_t>(f.owner) - 1;
            const auto* at = static_cast<const uint8_t*>(segs[i][0].base);
            const auto want = uint8_t(turn[i] - turn[i] % 2); // of the write before
            wrong += f.status != VQL_STATUS_OK || at[0] != want || at[511] != want;
            turn[i]++;
            busy[i] = false;
            done++;
        }
        if (r.engine.done().empty())
            std::this_thread::yield(); // CPUs may be few
        r.engine.clear_done();
    }
    stop.store(true, std::memory_order_release);
    device.join();
    CHECK(wrong == 0);
    CHECK(r.engine.in_flight() == 0);
}
