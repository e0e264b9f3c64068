// SPDX-License-Identifier: GPL-2.0-only
// Driver and device on two threads over one ring: the proof of barrier.h. A missing barrier shows
// as a lost kick or a lost interrupt, which is a sleep that never ends (here: ends with an error),
// or as a data race, which ThreadSanitizer reports.
#include "ring_memory.h"

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <chrono>
#include <cstring>
#include <poll.h>
#include <string>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>

using namespace vql::test;

namespace {

constexpr int lost_ms = 20000; // nobody sleeps that long unless a notification was lost

class event {
  public:
    event() : fd_(::eventfd(0, EFD_CLOEXEC)) {}
    event(const event&) = delete;
    event& operator=(const event&) = delete;
    ~event() { ::close(fd_); }

    void signal() const {
        const uint64_t one = 1;
        if (::write(fd_, &one, sizeof(one)) != sizeof(one))
            std::abort();
    }
    // False: nothing came.
    bool wait() const {
        pollfd p = {fd_, POLLIN, 0};
        uint64_t count;
        return ::poll(&p, 1, lost_ms) == 1 && ::read(fd_, &count, sizeof(count)) == sizeof(count);
    }

  private:
    int fd_;
};

class stopwatch {
  public:
    explicit stopwatch(int ms)
        : end_(std::chrono::steady_clock::now() + std::chrono::milliseconds(ms)) {}
    bool running() const { return std::chrono::steady_clock::now() < end_; }

  private:
    std::chrono::steady_clock::time_point end_;
};

void pause_a_little(uint64_t rounds) {
    for (uint64_t i = 0; i < rounds; i++)
        vql_compiler_barrier();
}

constexpr uint64_t answer_to(uint64_t question) {
    return question * 0x9e3779b97f4a7c15 + 1;
}

// What both sides share. A request is 8 readable bytes, the question, and 8 writable ones, the
// answer; slot s owns descriptors 2s and 2s+1.
struct shared {
    explicit shared(uint16_t num, bool event_idx)
        : ram({{base, 16ull * num}}), t(num, false, event_idx), slots(num / 2) {
        for (uint16_t s = 0; s < slots; s++) {
            t.set_desc(2u * s, question(s), 8, VQL_DESC_F_NEXT, static_cast<uint16_t>(2 * s + 1));
            t.set_desc(2u * s + 1, question(s) + 8, 8, VQL_DESC_F_WRITE);
        }
    }
    static uint64_t question(uint16_t slot) { return base + 16ull * slot; }

    static constexpr uint64_t base = 0x1000;
    guest_ram ram;
    test_ring t;
    uint16_t slots;
    event kick, call;
    std::atomic<bool> stop{false};
    std::string driver_error, device_error; // each written by its own thread
    uint64_t kicks = 0, calls = 0, driver_sleeps = 0, device_sleeps = 0;
};

void device(shared& s) {
    vql_ring& r = s.t.ring;
    vql_mem m = s.ram.mem();
    vql_chain c;
    random_source random(20);
    vql_ring_disarm(&r);
    while (!s.stop.load(std::memory_order_acquire)) {
        const int pending = vql_ring_pending(&r);
        if (pending < 0) {
            s.device_error = "available index ran ahead";
            return;
        }
        if (pending == 0) {
            // Polling long, then arming just when the driver may be offering.
            for (uint64_t i = random.one_in(2) ? 2000 : 0; i && !vql_ring_pending(&r); i--)
                ;
            pause_a_little(random.between(0, 1000));
            if (vql_ring_arm(&r)) {
                vql_ring_disarm(&r);
                continue;
            }
            s.device_sleeps++;
            if (!s.kick.wait()) {
                s.device_error = vql_ring_pending(&r) ? "a kick was lost" : "the driver went quiet";
                return;
            }
            vql_ring_disarm(&r);
            continue;
        }
        for (uint64_t i = random.between(1, static_cast<uint64_t>(pending)); i > 0; i--) {
            const uint16_t head = vql_ring_peek(&r);
            uint64_t question, answer;
            if (vql_chain_walk(&r, &m, head, &c) || c.out_bytes != 8 || c.in_bytes != 8) {
                s.device_error = "a chain is not what the driver wrote";
                return;
            }
            vql_seg* seg = c.seg;
            uint32_t nout = c.nout;
            vql_seg_pull(&seg, &nout, &question, 8);
            answer = answer_to(question);
            std::memcpy(seg->base, &answer, 8);
            r.next_avail++;
            vql_ring_push(&r, head, 8);
        }
        vql_ring_publish(&r);
        if (vql_ring_should_interrupt(&r)) {
            s.calls++;
            s.call.signal();
        }
    }
}

// The other side of virtio 1.3 §2.7.13 and §2.7.14, as Linux does it.
class driver {
  public:
    explicit driver(shared& s) : s_(s), expected_(s.slots) {
        for (uint16_t i = 0; i < s.slots; i++)
            free_.push_back(i);
        if (!s.t.ring.event_idx)
            vql_write_once(&s.t.ring.avail->flags, uint16_t{VQL_AVAIL_F_NO_INTERRUPT});
    }

    void run(int ms) {
        const stopwatch watch(ms);
        bool more = true;
        while (s_.driver_error.empty() && (more || free_.size() < s_.slots)) {
            more = watch.running();
            // One request at a time meets the other side asleep most often; bursts fill the ring.
            if (more && !free_.empty())
                offer(random_.one_in(2) ? 1 : random_.between(1, free_.size()));
            for (uint64_t i = random_.one_in(2) ? 2000 : 0; i && !answered(); i--)
                ;
            pause_a_little(random_.between(0, 1000));
            if (!reap() && !(more && !free_.empty() && random_.one_in(4)))
                sleep();
        }
        s_.stop.store(true, std::memory_order_release);
        s_.kick.signal();
    }

    uint64_t offered() const { return offered_; }

  private:
    void offer(uint64_t n) {
        vql_ring& r = s_.t.ring;
        const uint16_t old = avail_;
        for (; n; n--, offered_++) {
            const uint16_t slot = free_.back();
            free_.pop_back();
            const uint64_t question = random_.any();
            expected_[slot] = answer_to(question);
            std::memcpy(s_.ram.at(shared::question(slot)), &question, 8);
            vql_write_once(&r.avail->ring[avail_ & (r.num - 1)], static_cast<uint16_t>(2 * slot));
            avail_++;
        }
        vql_store_release(&r.avail->idx, avail_);
        vql_mb();
        const bool kick = r.event_idx
                              ? vql_event_passed(vql_read_once(&s_.t.avail_event()), avail_, old)
                              : !(vql_read_once(&r.used->flags) & VQL_USED_F_NO_NOTIFY);
        if (kick) {
            s_.kicks++;
            s_.kick.signal();
        }
    }

    bool answered() const { return vql_load_acquire(&s_.t.ring.used->idx) != used_; }

    bool reap() {
        vql_ring& r = s_.t.ring;
        const uint16_t now = vql_load_acquire(&r.used->idx);
        const bool any = now != used_;
        for (; used_ != now; used_++) {
            const vql_used_elem e = r.used->ring[used_ & (r.num - 1)];
            const auto slot = static_cast<uint16_t>(e.id / 2);
            if (e.id % 2 || slot >= s_.slots || e.len != 8) {
                s_.driver_error = "a used entry is not what the device wrote";
                return true;
            }
            uint64_t answer;
            std::memcpy(&answer, s_.ram.at(shared::question(slot)) + 8, 8);
            if (answer != expected_[slot])
                s_.driver_error = "an answer was seen before it was written";
            free_.push_back(slot);
        }
        return any;
    }

    void sleep() {
        vql_ring& r = s_.t.ring;
        if (r.event_idx)
            vql_write_once(&s_.t.used_event(), used_);
        else
            vql_write_once(&r.avail->flags, uint16_t{0});
        vql_mb();
        if (vql_load_acquire(&r.used->idx) == used_ && free_.size() < s_.slots) {
            s_.driver_sleeps++;
            if (!s_.call.wait())
                s_.driver_error = vql_load_acquire(&r.used->idx) == used_ ? "no answer came"
                                                                          : "an interrupt was lost";
        }
        if (!r.event_idx)
            vql_write_once(&r.avail->flags, uint16_t{VQL_AVAIL_F_NO_INTERRUPT});
    }

    shared& s_;
    uint64_t offered_ = 0;
    std::vector<uint64_t> expected_; // per slot
    std::vector<uint16_t> free_;
    uint16_t avail_ = 0, used_ = 0;
    random_source random_{21};
};

// For waits of a fraction of a microsecond, unless the other thread has no CPU.
template <class F>
void spin_until(F ready) {
    for (uint32_t i = 1; !ready(); i++)
        if (i % 4096 == 0)
            std::this_thread::yield();
}

// ---- both sides at once, over and over ----

// Runs @other on a thread of its own once per round, at the same time as the caller runs its own
// side: round() starts one, wait() ends it. The caller's delay follows the outcome, so that the two
// keep meeting, on whatever CPUs they run.
class duel {
  public:
    template <class F>
    explicit duel(F other)
        : thread_([this, other] {
              random_source random(24);
              for (uint64_t n = 1;; n++) {
                  while (round_.load(std::memory_order_acquire) < n)
                      ;
                  if (stop_)
                      return;
                  pause_a_little(random.between(0, 300));
                  other();
                  done_.store(n, std::memory_order_release);
              }
          }) {}
    duel(const duel&) = delete;
    duel& operator=(const duel&) = delete;
    ~duel() {
        stop_ = true;
        round();
        thread_.join();
    }

    void round() {
        round_.store(++rounds_, std::memory_order_release);
        pause_a_little(delay_ + random_.between(0, 1000));
    }
    // @late: tells whether the other side came after the caller's.
    template <class F>
    void wait(F late) {
        spin_until([&] { return done_.load(std::memory_order_acquire) >= rounds_; });
        if (late())
            delay_ += delay_ < 5000;
        else
            delay_ -= delay_ > 0;
    }

  private:
    alignas(64) std::atomic<uint64_t> round_{0};
    alignas(64) std::atomic<uint64_t> done_{0};
    alignas(64) uint64_t rounds_ = 0;
    bool stop_ = false; // ordered by round_
    uint64_t delay_ = 0;
    random_source random_{25};
    std::thread thread_;
};

// ---- memory that changes under the reader ----

// Another vCPU of the guest, scribbling. Not instrumented: its races are what it is for.
__attribute__((no_sanitize("thread"))) void scribble(volatile uint64_t* word, uint64_t value) {
    *word = value;
}

class scribbler {
  public:
    template <class F>
    explicit scribbler(F once)
        : thread_([this, once] {
              while (!stop_.load(std::memory_order_relaxed))
                  once();
          }) {}
    scribbler(const scribbler&) = delete;
    scribbler& operator=(const scribbler&) = delete;
    ~scribbler() {
        stop_.store(true);
        thread_.join();
    }

  private:
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

} // namespace

TEST_CASE("threads: nothing is lost between driver and device, asleep or awake",
          "[vring][threads]") {
    const bool event_idx = GENERATE(false, true);
    const uint16_t num = GENERATE(uint16_t{2}, uint16_t{64});
    shared s(num, event_idx);
    driver d(s);
    std::thread other([&s] { device(s); });
    d.run(1000);
    other.join();
    CAPTURE(run_seed(), event_idx, num, d.offered(), s.kicks, s.calls, s.driver_sleeps,
            s.device_sleeps);
    CHECK(s.driver_error == "");
    CHECK(s.device_error == "");
    CHECK(s.t.ring.next_used == static_cast<uint16_t>(d.offered()));
    // Each side really slept and was woken, or this proves nothing about notifications.
    CHECK(s.driver_sleeps > 0);
    CHECK(s.device_sleeps > 0);
}

TEST_CASE("threads: of a driver that offers and a device that arms, one sees the other",
          "[vring][threads]") {
    const bool event_idx = GENERATE(false, true);
    test_ring t(256, false, event_idx); // large: the event indexes have cache lines of their own
    bool seen = false;
    uint64_t lost = 0;
    duel device([&] { seen = vql_ring_arm(&t.ring); });
    for (const stopwatch watch(1000); watch.running();) {
        vql_ring_disarm(&t.ring);
        device.round();
        t.offer(0);
        vql_mb();
        const bool kick = event_idx ? vql_event_passed(vql_read_once(&t.avail_event()),
                                                       t.ring.avail->idx, t.ring.next_avail)
                                    : !(vql_read_once(&t.ring.used->flags) & VQL_USED_F_NO_NOTIFY);
        device.wait([&] { return seen; });
        lost += !kick && !seen;
        t.ring.next_avail++;
    }
    CAPTURE(event_idx);
    CHECK(lost == 0);
}

TEST_CASE("threads: of a device that publishes and a driver that arms, one sees the other",
          "[vring][threads]") {
    const bool event_idx = GENERATE(false, true);
    test_ring t(256, false, event_idx);
    uint16_t before = 0, seen = 0;
    uint64_t lost = 0;
    duel driver([&] {
        if (event_idx)
            vql_write_once(&t.used_event(), before);
        else
            vql_write_once(&t.ring.avail->flags, uint16_t{0});
        vql_mb();
        seen = vql_load_acquire(&t.ring.used->idx);
    });
    for (const stopwatch watch(1000); watch.running();) {
        before = t.ring.signalled;
        t.ring.avail->flags = VQL_AVAIL_F_NO_INTERRUPT;
        vql_ring_push(&t.ring, 0, 0);
        driver.round();
        vql_ring_publish(&t.ring);
        const bool interrupt = vql_ring_should_interrupt(&t.ring);
        driver.wait([&] { return seen != before; });
        lost += !interrupt && seen == before;
    }
    CAPTURE(event_idx);
    CHECK(lost == 0);
}

TEST_CASE("threads: descriptors that change during the walk never lead outside memory",
          "[vring][threads]") {
    const guest_ram ram({{0x1000, 0x1000}, {0x2000, 0x1000}});
    test_ring t(4);
    auto* table = reinterpret_cast<volatile uint64_t*>(ram.at(0x1800));
    auto* ring = reinterpret_cast<volatile uint64_t*>(t.desc_bytes());
    const auto tail = [](uint64_t len, uint64_t flags, uint64_t next) {
        return len | flags << 32 | next << 48;
    };
    // Any of these may be combined by a walk that comes at the right moment; most are valid alone.
    const std::vector<uint64_t> addresses = {0x1000, 0x1ff8, 0x2ff0,
                                             0x1800, 0x3000, UINT64_MAX - 3};
    const std::vector<uint64_t> tails = {
        tail(16, VQL_DESC_F_NEXT, 1),
        tail(4, VQL_DESC_F_NEXT, 2),
        tail(0x1000, VQL_DESC_F_WRITE | VQL_DESC_F_NEXT, 3),
        tail(9, VQL_DESC_F_WRITE, 0),
        tail(64, VQL_DESC_F_INDIRECT, 0),
        tail(0xffffffff, VQL_DESC_F_NEXT, 0xffff),
    };
    random_source random(22);
    const scribbler other([&] {
        volatile uint64_t* d = (random.one_in(2) ? ring : table) + 2 * random.between(0, 3);
        scribble(d, addresses[random.between(0, addresses.size() - 1)]);
        scribble(d + 1, tails[random.between(0, tails.size() - 1)]);
    });
    auto c = std::make_unique<vql_chain>();
    vql_mem m = ram.mem();
    uint64_t walks = 0, good = 0, bad = 0;
    for (const stopwatch watch(500); watch.running(); walks++) {
        if (vql_chain_walk(&t.ring, &m, 0, c.get())) {
            bad++;
            continue;
        }
        good++;
        if (const char* broken = broken_invariant(ram, *c))
            FAIL(broken << " in walk " << walks);
    }
    CHECK(good > 0);
    CHECK(bad > 0);
}

TEST_CASE("threads: a header and a range that change while they are read are checked as read",
          "[blk][threads]") {
    const guest_ram ram({{0x1000, 0x1000}});
    vql_blk_disk disk{};
    disk.sectors = 100;
    disk.block_bytes = 512;
    disk.discard = disk.write_zeroes = disk.unmap = true;
    test_ring t(4);
    t.set_desc(0, 0x1000, 32, VQL_DESC_F_NEXT, 1);
    t.set_desc(1, 0x1100, 1, VQL_DESC_F_WRITE);
    t.set_desc(2, 0x1000, 16, VQL_DESC_F_NEXT, 3);
    t.set_desc(3, 0x1200, 513, VQL_DESC_F_WRITE);
    auto* words = reinterpret_cast<volatile uint64_t*>(ram.at(0x1000));
    const std::vector<uint64_t> types = {VQL_BLK_T_IN, VQL_BLK_T_DISCARD, VQL_BLK_T_WRITE_ZEROES};
    random_source random(23);
    const scribbler other([&] {
        scribble(words, types[random.between(0, 2)]);
        scribble(words + 1, random.one_in(2) ? 99 : UINT64_MAX); // sector of the header
        scribble(words + 2, random.one_in(2) ? 8 : UINT64_MAX);  // sector of the range
        const uint64_t sectors = random.one_in(2) ? 8 : 0xffffffff;
        scribble(words + 3, sectors | random.between(0, 2) << 32); // and its flags
    });
    auto c = std::make_unique<vql_chain>();
    vql_mem m = ram.mem();
    uint64_t requests = 0, served = 0, refused = 0;
    for (const stopwatch watch(500); watch.running(); requests++) {
        vql_io io;
        vql_blk_answer answer{};
        if (vql_chain_walk(&t.ring, &m, requests % 2 ? 2 : 0, c.get()))
            FAIL("the chain itself does not change");
        const int verdict = vql_blk_parse(c.get(), &disk, &io, &answer);
        if (const char* broken = broken_invariant(ram, disk, io, answer, verdict))
            FAIL(broken << " in request " << requests);
        (verdict == VQL_BLK_SUBMIT ? served : refused)++;
    }
    CHECK(served > 0);
    CHECK(refused > 0);
}
