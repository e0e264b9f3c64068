// SPDX-License-Identifier: GPL-2.0-only
// What a request costs the poll lane: the poller's rounds between a driver and, for the NVMe
// engine, a controller that are no more than memory.
//
//   poll_cost count CASE BATCH REQUESTS   driver, poller and controller take turns on one thread:
//                                         for callgrind, which counts poller::round() only
//   poll_cost time CASE DEPTH SECONDS [DRIVER_CPU POLLER_CPU]
//                                         the poller has a CPU to itself, the other two share one;
//                                         timed is all of it, and what of it were the poller's
//                                         rounds that found work
//
// CASE is null or nvme, and its rings have indirect tables with -indirect behind that. Both print
// what was done; a request that ends with another status than OK, or not at all, is an error.
#include "daemon/poller.h"

#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sched.h>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <vqlane/barrier.h>

namespace {

using namespace vql;

constexpr uint32_t ring_entries = 1024;
constexpr uint32_t slots = ring_entries / 4; // requests under way at most, three descriptors each
constexpr uint64_t block = 4096;
constexpr uint64_t disk_bytes = 1ull << 30;
constexpr uint64_t disk_sectors = disk_bytes >> VQL_SECTOR_SHIFT;
constexpr uint32_t chunk_shift = 20;
constexpr uint64_t guest_base = 1ull << 20; // guest physical
constexpr uint64_t memory_bytes = 16ull << 20;

[[noreturn]] void die(const std::string& why) {
    std::fprintf(stderr, "poll_cost: %s\n", why.c_str());
    std::exit(1);
}

template <class T>
T* carve(uint8_t*& at, size_t count) {
    T* const here = reinterpret_cast<T*>(at);
    at += (count * sizeof(T) + 4095) & ~size_t{4095};
    return here;
}

uint8_t* pages(size_t bytes) {
    void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED)
        die("no memory");
    return static_cast<uint8_t*>(p);
}

// A Linux driver keeps a request's header and its status byte side by side.
struct alignas(64) request_memory {
    vql_blk_hdr header;
    uint8_t status;
};

// The driver's side: chains that are written once, and a submission that is a sector and an index.
class driver {
  public:
    explicit driver(bool indirect) : indirect_(indirect), memory_(pages(memory_bytes)) {
        uint8_t* at = memory_;
        desc_ = carve<vql_desc>(at, ring_entries);
        avail_ = carve<vql_avail>(at, 1);
        used_ = carve<vql_used>(at, 1);
        request_ = carve<request_memory>(at, slots);
        tables_ = carve<vql_desc>(at, size_t{4} * slots);
        data_ = carve<uint8_t>(at, slots * block);
        avail_->flags = VQL_AVAIL_F_NO_INTERRUPT;
        for (uint32_t i = 0; i < slots; i++) {
            const uint32_t head = i * 4;
            vql_desc* const chain = indirect ? tables_ + head : desc_ + head;
            const auto next = uint16_t(indirect ? 0 : head);
            chain[0] = {guest(&request_[i].header), sizeof(vql_blk_hdr), VQL_DESC_F_NEXT,
                        uint16_t(next + 1)};
            chain[1] = {guest(data_ + i * block), block, VQL_DESC_F_NEXT | VQL_DESC_F_WRITE,
                        uint16_t(next + 2)};
            chain[2] = {guest(&request_[i].status), 1, VQL_DESC_F_WRITE, 0};
            if (indirect)
                desc_[head] = {guest(chain), 3 * sizeof(vql_desc), VQL_DESC_F_INDIRECT, 0};
            free_[i] = uint16_t(i);
        }
    }

    void submit(uint32_t n) {
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t slot = free_[--nfree_];
            request_[slot].header.sector = at_;
            at_ = (at_ + 8 * 1237) % disk_sectors;
            avail_->ring[next_avail_++ % ring_entries] = uint16_t(slot * 4);
        }
        vql_store_release(&avail_->idx, next_avail_);
    }

    uint32_t reap() {
        const uint16_t idx = vql_load_acquire(&used_->idx);
        const auto n = uint16_t(idx - next_used_);
        if (n > slots - nfree_)
            die("more answers than requests");
        for (; next_used_ != idx; next_used_++) {
            const uint32_t head = used_->ring[next_used_ % ring_entries].id;
            if (head % 4 || head / 4 >= slots || request_[head / 4].status != VQL_STATUS_OK)
                die("a request was answered with an error");
            request_[head / 4].status = 0xff;
            free_[nfree_++] = uint16_t(head / 4);
        }
        return n;
    }

    void attach(virtqueue& vq, std::vector<vql_region>& regions) {
        regions = {{guest_base, memory_bytes, memory_, 0}};
        vq.mem = {regions.data(), 1, 0};
        vq.ring.desc = desc_;
        vq.ring.avail = avail_;
        vq.ring.used = used_;
        vq.ring.num = ring_entries;
        vq.ring.indirect = indirect_;
        vq.disk.sectors = disk_sectors;
        vq.disk.block_bytes = 512;
    }

  private:
    uint64_t guest(const void* p) const {
        return guest_base + uint64_t(static_cast<const uint8_t*>(p) - memory_);
    }

    const bool indirect_;
    uint8_t* memory_;
    vql_desc* desc_;
    vql_avail* avail_;
    vql_used* used_;
    request_memory* request_;
    vql_desc* tables_;
    uint8_t* data_;
    uint16_t free_[slots];
    uint32_t nfree_ = slots;
    uint16_t next_avail_ = 0, next_used_ = 0;
    uint64_t at_ = 0;
};

// The controller's side: completes every command at once, in order. Moves no data.
class controller {
  public:
    controller() : memory_(pages(memory_bytes)) {
        uint8_t* at = memory_;
        sq_ = carve<vql_nvme_sqe>(at, depth);
        cq_ = carve<vql_nvme_cqe>(at, depth);
        doorbells_ = carve<uint32_t>(at, 32);
        state_ = carve<uint32_t>(at, 1);
        pool_ = carve<uint8_t>(at, size_t{pool_pages} * 4096);
    }

    vql_nvme_queue queue() const {
        vql_nvme_queue q{};
        q.sq = sq_;
        q.cq = cq_;
        q.sq_doorbell = doorbells_;
        q.cq_doorbell = doorbells_ + 16; // a cache line of its own, as registers have no cache
        q.pool = pool_;
        q.pool_dma = 1ull << 40;
        q.state = state_;
        q.pool_pages = pool_pages;
        q.depth = depth;
        q.limits.max_transfer = 128 << 10;
        return q;
    }

    void step() {
        const uint32_t tail = vql_load_acquire(doorbells_);
        while (head_ != tail) {
            vql_nvme_cqe& e = cq_[cq_tail_];
            e.cid = sq_[head_].cid;
            vql_store_release(&e.status, phase_);
            head_ = head_ + 1 == depth ? 0 : head_ + 1;
            if (++cq_tail_ == depth) {
                cq_tail_ = 0;
                phase_ ^= 1;
            }
        }
    }

  private:
    static constexpr uint32_t depth = 1024;
    static constexpr uint32_t pool_pages = depth + 8;
    uint8_t* memory_;
    vql_nvme_sqe* sq_;
    vql_nvme_cqe* cq_;
    uint32_t* doorbells_;
    uint32_t* state_;
    uint8_t* pool_;
    uint32_t head_ = 0, cq_tail_ = 0;
    uint16_t phase_ = 1;
};

// A disk of one queue with all that a poller needs to serve it.
class rig {
  public:
    rig(const std::string& kind, int cpu)
        : nvme_(kind.rfind("nvme", 0) == 0), front(kind.find("-indirect") != kind.npos),
          stats_(reinterpret_cast<vql_disk_stats*>(pages(sizeof(vql_disk_stats)))) {
        if (kind != "null" && kind != "nvme" && kind != "null-indirect" && kind != "nvme-indirect")
            die("CASE is null, nvme, null-indirect or nvme-indirect, not " + kind);
        auto p = poller::open({cpu, 0, UINT64_MAX, true}, loop_, targets_);
        if (!p)
            die(p.failure().text);
        lane = std::move(*p);
        where_ = make_null_target("target", disk_bytes);
        if (nvme_) {
            where_->kind = target_kind::nvme;
            where_->nsid = 1;
            if (auto ok = nvme_lane_.engine.open(back.queue()); !ok)
                die(ok.failure().text);
            lane->add_nvme(nvme_lane_, 0);
        }
        targets_[0] = where_.get();
        for (uint64_t i = 0; i < words_.size(); i++) // backwards, so that nothing merges
            words_[i] = vql_extent_word(VQL_EXTENT_MAPPED, 0, words_.size() - 1 - i);
        front.attach(vq_, regions_);
        for (uint64_t i = 0; i < dma_.size(); i++)
            dma_[i] = (1ull << 32) + i * 4096;
        view_ = make_dma_view(regions_, dma_.data());
        queue_.vq = &vq_;
        queue_.table = {words_.data(), words_.size(), chunk_shift};
        queue_.targets = {where_.get()};
        queue_.dma[0] = &view_;
        queue_.stats = stats_;
        lane->add_queue(queue_);
    }

    bool nvme() const { return nvme_; }

  private:
    const bool nvme_;
    event_loop loop_;
    target_table targets_{};
    std::unique_ptr<target> where_;
    nvme_lane nvme_lane_;
    std::vector<vql_region> regions_;
    std::vector<uint64_t> dma_ = std::vector<uint64_t>(memory_bytes >> 12);
    dma_view view_;
    std::vector<__u64> words_ = std::vector<__u64>(disk_bytes >> chunk_shift);
    virtqueue vq_;
    served_queue queue_;

  public:
    driver front;
    controller back;
    std::unique_ptr<poller> lane;

  private:
    vql_disk_stats* stats_;
};

void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(size_t(cpu), &set);
    if (const int err = pthread_setaffinity_np(pthread_self(), sizeof(set), &set))
        die("CPU " + std::to_string(cpu) + ": " + std::strerror(err));
}

int first_cpu() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set))
        die(std::strerror(errno));
    int cpu = 0;
    while (!CPU_ISSET(size_t(cpu), &set))
        cpu++;
    return cpu;
}

#if defined(__x86_64__)
uint64_t ticks() {
    return __builtin_ia32_rdtsc();
}
#else
uint64_t ticks() {
    return uint64_t(std::chrono::steady_clock::now().time_since_epoch().count());
}
#endif

void count(const std::string& kind, uint32_t batch, uint64_t requests) {
    rig r(kind, first_cpu());
    uint64_t done = 0;
    while (done < requests) {
        r.front.submit(batch);
        uint32_t left = batch;
        for (int rounds = 0; left; rounds++) {
            if (rounds == 100)
                die("a request is not answered");
            r.lane->round();
            if (r.nvme())
                r.back.step();
            left -= r.front.reap();
        }
        done += batch;
    }
    std::printf("{\"case\": \"%s\", \"batch\": %u, \"requests\": %llu}\n", kind.c_str(), batch,
                static_cast<unsigned long long>(done));
}

void time(const std::string& kind, uint32_t depth, double seconds, int driver_cpu, int poller_cpu) {
    std::atomic<rig*> shared{nullptr};
    std::atomic<bool> stop{false};
    using clock = std::chrono::steady_clock;
    std::atomic<uint64_t> rounds{0}, busy{0};
    std::atomic<double> busy_ns{0};
    std::atomic<bool> counting{false};
    std::thread poll([&] {
        rig r(kind, poller_cpu);
        shared = &r;
        uint64_t n = 0, worked = 0, in_ticks = 0;
        const auto began = clock::now();
        const uint64_t first_tick = ticks();
        while (!stop.load(std::memory_order_relaxed)) {
            const uint64_t before = ticks();
            const bool work = r.lane->round();
            if (!counting.load(std::memory_order_relaxed))
                continue;
            in_ticks += work ? ticks() - before : 0;
            worked += work;
            n++;
        }
        const double per_tick =
            std::chrono::duration<double, std::nano>(clock::now() - began).count() /
            double(ticks() - first_tick);
        rounds = n;
        busy = worked;
        busy_ns = double(in_ticks) * per_tick;
    });
    pin(driver_cpu);
    while (!shared.load()) {
    }
    rig& r = *shared.load();
    uint64_t done = 0, looks = 0;
    uint32_t under_way = 0;
    auto begin = clock::now();
    const auto warm = begin + std::chrono::milliseconds(100);
    auto end =
        warm + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(seconds));
    for (uint32_t spin = 0;; spin++) {
        if (depth > under_way) {
            r.front.submit(depth - under_way);
            under_way = depth;
        }
        if (r.nvme())
            r.back.step();
        const uint32_t n = r.front.reap();
        under_way -= n;
        done += n;
        looks += n != 0;
        if (spin % 256)
            continue;
        const auto now = clock::now();
        if (!counting && now >= warm) {
            counting = true;
            begin = now;
            done = looks = 0;
        }
        if (now >= end) {
            end = now;
            break;
        }
    }
    stop = true;
    poll.join();
    const double ns = std::chrono::duration<double, std::nano>(end - begin).count();
    std::printf("{\"case\": \"%s\", \"depth\": %u, \"requests\": %llu, \"ns_per_request\": %.1f, "
                "\"poller_ns_per_request\": %.1f, \"answers_per_look\": %.1f, "
                "\"rounds_with_work\": %.3f}\n",
                kind.c_str(), depth, static_cast<unsigned long long>(done), ns / double(done),
                busy_ns / double(done), double(done) / double(looks),
                double(busy) / double(rounds));
}

} // namespace

int main(int argc, char** argv) {
    const std::string how = argc > 1 ? argv[1] : "";
    if (how == "count" && argc == 5)
        count(argv[2], uint32_t(std::atoi(argv[3])), uint64_t(std::atoll(argv[4])));
    else if (how == "time" && (argc == 5 || argc == 7))
        time(argv[2], uint32_t(std::atoi(argv[3])), std::atof(argv[4]),
             argc == 7 ? std::atoi(argv[5]) : 0, argc == 7 ? std::atoi(argv[6]) : 1);
    else
        die("usage: poll_cost count CASE BATCH REQUESTS | time CASE DEPTH SECONDS [DRIVER_CPU "
            "POLLER_CPU]");
}
