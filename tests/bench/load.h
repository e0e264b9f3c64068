// SPDX-License-Identifier: GPL-2.0-only
// A load of virtio-blk requests on a device, made as cheaply as it can be, since what it costs is
// measured with the device: chains are written once, a request is a sector and an entry of the
// available ring, and each look at the used ring resubmits all that was answered.
//
// A request's header and status byte share a cache line, as in Linux's driver.
#pragma once

#include "guest/transport.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace vql::bench {

struct load_options {
    unsigned queues = 1;
    unsigned depth = 32; // requests under way on each queue
    uint32_t block_bytes = 4096;
    unsigned read_percent = 100;
    bool sequential = false;
    bool indirect = true;
    bool interrupts = false; // sleep until the device interrupts, instead of looking all the time
    double seconds = 1;
    double warmup = 0.1;
    int server_pid = 0; // whose CPU time to take; 0: nobody's
};

// Times: exact below 256, within 1/128 above.
class histogram {
  public:
    void add(uint64_t ns, uint64_t count) {
        count_[index(ns)] += count;
        total_ += count;
        sum_ += ns * count;
        max_ = ns > max_ ? ns : max_;
    }
    uint64_t total() const { return total_; }
    double average() const { return total_ ? double(sum_) / double(total_) : 0; }
    uint64_t max() const { return max_; }
    // The time that @part (0…1) of all do not exceed: the middle of its bucket.
    uint64_t percentile(double part) const;
    // (least time, count), of those that have any.
    std::vector<std::pair<uint64_t, uint64_t>> buckets() const;
    // In another unit, of which @factor make one of this. Average and maximum stay exact.
    histogram scaled(double factor) const;

  private:
    static constexpr unsigned bits = 7;
    static unsigned index(uint64_t ns) {
        if (ns < 2u << bits)
            return unsigned(ns);
        const unsigned log = 63u - unsigned(__builtin_clzll(ns));
        return ((log - bits) << bits) + unsigned(ns >> (log - bits));
    }
    static uint64_t least(unsigned index);
    static uint64_t middle(unsigned index) {
        return least(index) + (least(index + 1) - least(index)) / 2;
    }
    std::array<uint64_t, (65 - bits) << bits> count_{};
    uint64_t total_ = 0, sum_ = 0, max_ = 0;
};

struct load_result {
    uint64_t requests = 0;
    uint64_t all_requests = 0; // with those of the warm-up and the end
    double seconds = 0;
    uint64_t looks = 0;  // at the used rings, that found something
    uint64_t errors = 0; // other statuses than OK
    histogram latency;
    double server_cpu_ns = -1; // run time of the server's threads meanwhile; < 0: not asked for
    // Time that somebody else had the CPU: of this thread, of the server's threads, of the machine.
    // Not a number (null in JSON) where the kernel does not count it; then nothing is said to be
    // contended.
    double driver_wait_ns = 0, server_wait_ns = 0, steal_ns = 0;
    bool contended() const { return driver_wait_ns + server_wait_ns + steal_ns > 0.02e9 * seconds; }
};

// The rings and requests of one queue, in guest memory.
class load_queue {
  public:
    load_queue(guest::guest_memory& memory, const load_options& o, uint64_t blocks, unsigned seed);

    guest::vring_setup setup() const;
    // Guest address of the status byte of the request with head @head.
    uint64_t status_gpa(uint16_t head) const {
        return requests_gpa_ + (head >> head_shift_) * 64 + 48;
    }

    // All requests, once.
    void start(uint64_t now);
    // Take what was answered, and submit it anew if @more. Returns how many there were.
    unsigned turn(uint64_t (*clock)(), bool more, load_result& r);
    bool idle() const { return !under_way_; }
    // Ask for an interrupt at the next answer. False: it is there already.
    bool arm();
    int call_fd() const { return call_.get(); }

  private:
    void submit(uint16_t head);
    void publish();

    const load_options options_;
    const uint64_t blocks_;
    uint64_t random_;
    uint64_t next_block_ = 0;
    unsigned size_, head_shift_;
    uint64_t desc_gpa_, avail_gpa_, used_gpa_, requests_gpa_;
    guest::vring_descriptor* desc_;
    guest::vring_descriptor* tables_ = nullptr;
    uint16_t* avail_;
    uint8_t* used_;
    uint8_t* requests_;
    std::vector<uint64_t> submitted_; // by request: the clock's reading
    uint16_t avail_next_ = 0, used_next_ = 0, told_ = 0;
    unsigned under_way_ = 0;
    guest::unique_fd kick_, call_, err_;
};

class load {
  public:
    // Attaches to @device and starts its queues. Throws guest_error with what is wrong.
    load(guest::transport& device, const load_options& o);
    // Until the time is over; all requests are answered then.
    load_result run();
    load_queue& queue(unsigned i) { return *queues_[i]; }

  private:
    load_options options_;
    std::unique_ptr<guest::guest_memory> memory_;
    std::vector<std::unique_ptr<load_queue>> queues_;
};

// Pins the calling thread.
void pin(int cpu);

// A transport to the vhost-user socket or the vhost-vdpa device at @path.
std::unique_ptr<guest::transport> connect(const std::string& path,
                                          guest::milliseconds timeout = guest::default_timeout());

} // namespace vql::bench
