// SPDX-License-Identifier: GPL-2.0-only
#include "bench/load.h"

#include "guest/vhost_user_transport.h"
#include "guest/vhost_vdpa_transport.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vql::bench {

using namespace guest;

namespace {

constexpr milliseconds patience{10000}; // for an answer, before the device is given up

uint64_t monotonic_ns() {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return uint64_t(ts.tv_sec) * 1000000000u + uint64_t(ts.tv_nsec);
}

#if defined(__x86_64__)
uint64_t ticks() {
    return __builtin_ia32_rdtsc();
}
#else
uint64_t ticks() {
    return monotonic_ns();
}
#endif

// Both clocks at one time.
struct instant {
    uint64_t ns, tick;
};

// Where the least time passed between the two readings: nobody else had the CPU then.
instant read_clocks() {
    instant best{};
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 50; i++) {
        const uint64_t before = ticks(), ns = monotonic_ns(), took = ticks() - before;
        if (took < least) {
            least = took;
            best = {ns, before + took / 2};
        }
    }
    return best;
}

// Nanoseconds that one tick lasts.
double tick_ns() {
    static const double value = [] {
        const instant begin = read_clocks();
        while (monotonic_ns() - begin.ns < 20000000) {
        }
        const instant end = read_clocks();
        return double(end.ns - begin.ns) / double(end.tick - begin.tick);
    }();
    return value;
}

std::atomic_ref<uint16_t> word(void* at) {
    return std::atomic_ref(*static_cast<uint16_t*>(at));
}

// How long a thread has waited for a CPU. Not a number where the kernel does not count that (no
// SCHEDSTATS): it says then that the thread has never been on one.
double waited_ns(const std::string& task) {
    double run = 0, wait = 0, times = 0;
    std::ifstream file(task + "/schedstat");
    file >> run >> wait >> times;
    return times > 0 ? wait : std::nan("");
}

double waited_ns(int pid) {
    double sum = 0;
    std::error_code gone;
    const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
    for (const auto& task : std::filesystem::directory_iterator(tasks, gone))
        sum += waited_ns(task.path().string());
    return sum;
}

// How long a process has had CPUs, on its CPU clock: every kernel has that.
double ran_ns(int pid) {
    clockid_t clock;
    timespec t;
    if (const int err = clock_getcpuclockid(pid, &clock))
        throw guest_error("the CPU time of process " + std::to_string(pid) + ": " +
                          std::strerror(err));
    return clock_gettime(clock, &t) ? std::nan("") : double(t.tv_sec) * 1e9 + double(t.tv_nsec);
}

double steal_ns() {
    std::ifstream file("/proc/stat");
    std::string cpu;
    std::array<double, 8> ticks{};
    file >> cpu;
    for (double& t : ticks)
        file >> t;
    return ticks[7] * 1e9 / double(sysconf(_SC_CLK_TCK));
}

struct reading {
    uint64_t at = monotonic_ns();
    double self_waited = waited_ns("/proc/self/task/" + std::to_string(syscall(SYS_gettid)));
    double server_ran = 0, server_waited = 0;
    double steal = steal_ns();
    explicit reading(int pid) {
        if (!pid)
            return;
        server_ran = ran_ns(pid);
        server_waited = waited_ns(pid);
    }
};

} // namespace

uint64_t histogram::least(unsigned index) {
    if (index < 2u << bits)
        return index;
    const unsigned log = (index >> bits) + bits - 1;
    return (uint64_t{1} << log) + (uint64_t(index & ((1u << bits) - 1)) << (log - bits));
}

uint64_t histogram::percentile(double part) const {
    const auto wanted = uint64_t(std::ceil(part * double(total_)));
    uint64_t seen = 0;
    for (unsigned i = 0; i < count_.size(); i++) {
        seen += count_[i];
        if (seen >= wanted && seen)
            return std::min(middle(i), max_);
    }
    return max_;
}

std::vector<std::pair<uint64_t, uint64_t>> histogram::buckets() const {
    std::vector<std::pair<uint64_t, uint64_t>> all;
    for (unsigned i = 0; i < count_.size(); i++)
        if (count_[i])
            all.emplace_back(least(i), count_[i]);
    return all;
}

histogram histogram::scaled(double factor) const {
    histogram out;
    for (unsigned i = 0; i < count_.size(); i++)
        if (count_[i])
            out.count_[index(uint64_t(std::min(double(middle(i)), double(max_)) * factor))] +=
                count_[i];
    out.total_ = total_;
    out.sum_ = uint64_t(double(sum_) * factor);
    out.max_ = uint64_t(double(max_) * factor);
    return out;
}

load_queue::load_queue(guest_memory& memory, const load_options& o, uint64_t blocks, unsigned seed)
    : options_(o), blocks_(blocks), random_(seed * 0x9e3779b97f4a7c15 + 1),
      head_shift_(o.indirect ? 0 : 2), submitted_(o.depth), kick_(make_eventfd()),
      call_(make_eventfd()), err_(make_eventfd()) {
    size_ = 256;
    while (size_ < o.depth << head_shift_)
        size_ *= 2;
    if (o.depth == 0 || size_ > 1024)
        throw guest_error("a depth of " + std::to_string(o.depth) + ": 1 to " +
                          std::to_string(1024 >> head_shift_) + " can be had");
    desc_gpa_ = memory.allocate(desc_table_bytes(size_), 4096);
    avail_gpa_ = memory.allocate(avail_ring_bytes(size_), 4096);
    used_gpa_ = memory.allocate(used_ring_bytes(size_), 4096);
    requests_gpa_ = memory.allocate(64ull * o.depth, 4096);
    const uint64_t tables_gpa = memory.allocate(64ull * o.depth, 4096);
    const uint64_t data_gpa = memory.allocate(uint64_t{o.block_bytes} * o.depth, 4096);
    desc_ = memory.as<vring_descriptor>(desc_gpa_);
    avail_ = memory.as<uint16_t>(avail_gpa_);
    used_ = memory.as<uint8_t>(used_gpa_);
    requests_ = memory.as<uint8_t>(requests_gpa_);
    tables_ = o.indirect ? memory.as<vring_descriptor>(tables_gpa) : nullptr;
    std::memset(memory.as<uint8_t>(data_gpa), 0, uint64_t{o.block_bytes} * o.depth);
    for (unsigned i = 0; i < o.depth; i++) {
        const unsigned head = i << head_shift_;
        vring_descriptor* const chain = o.indirect ? tables_ + 4ull * i : desc_ + head;
        const auto first = uint16_t(o.indirect ? 0 : head);
        chain[0] = {requests_gpa_ + 64ull * i, sizeof(blk_header), desc_next, uint16_t(first + 1)};
        chain[1] = {data_gpa + uint64_t{o.block_bytes} * i, o.block_bytes, desc_next | desc_write,
                    uint16_t(first + 2)};
        chain[2] = {status_gpa(uint16_t(head)), 1, desc_write, 0};
        if (o.indirect)
            desc_[head] = {tables_gpa + 64ull * i, 3 * sizeof(vring_descriptor), desc_indirect, 0};
    }
    if (!o.interrupts)
        avail_[0] = avail_no_interrupt;
}

vring_setup load_queue::setup() const {
    return {uint16_t(size_), desc_gpa_,   avail_gpa_, used_gpa_, 0,
            kick_.get(),     call_.get(), err_.get()};
}

void load_queue::submit(uint16_t head) {
    uint8_t* const request = requests_ + 64ull * (head >> head_shift_);
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    uint64_t block = next_block_;
    if (options_.sequential)
        next_block_ = next_block_ + 1 == blocks_ ? 0 : next_block_ + 1;
    else
        block = ((random_ >> 32) * std::min(blocks_, uint64_t{UINT32_MAX})) >> 32;
    auto* const header = reinterpret_cast<blk_header*>(request);
    header->sector = block * (options_.block_bytes / sector_bytes);
    request[48] = uint8_t(blk_unwritten);
    if (options_.read_percent != 100) {
        const bool read = (random_ & 0xffff) * 100 < options_.read_percent * 0x10000ull;
        header->type = uint32_t(read ? blk_op::read : blk_op::write);
        vring_descriptor* const chain =
            options_.indirect ? tables_ + 4ull * (head >> head_shift_) : desc_ + head;
        chain[1].flags = uint16_t(desc_next | (read ? desc_write : 0));
    }
    avail_[2 + (avail_next_ & (size_ - 1))] = head;
    avail_next_++;
    under_way_++;
}

void load_queue::publish() {
    // Release: who sees the index sees entries, headers and descriptors.
    word(avail_ + 1).store(avail_next_, std::memory_order_release);
    // The index before the device's wish: it does the same the other way round.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool wanted;
    if (options_.interrupts) { // with EVENT_IDX
        const uint16_t event = word(used_ + 4 + 8ull * size_).load(std::memory_order_relaxed);
        wanted = uint16_t(avail_next_ - event - 1) < uint16_t(avail_next_ - told_);
    } else {
        wanted = !(word(used_).load(std::memory_order_relaxed) & used_no_notify);
    }
    told_ = avail_next_;
    if (wanted)
        signal_eventfd(kick_.get());
}

void load_queue::start(uint64_t now) {
    for (unsigned i = 0; i < options_.depth; i++) {
        submitted_[i] = now;
        submit(uint16_t(i << head_shift_));
    }
    publish();
}

unsigned load_queue::turn(uint64_t (*clock)(), bool more, load_result& r) {
    // Acquire: what was written before the index, status bytes among it.
    const uint16_t idx = word(used_ + 2).load(std::memory_order_acquire);
    const auto n = uint16_t(idx - used_next_);
    if (!n)
        return 0;
    if (n > under_way_)
        throw guest_error("the device answered " + std::to_string(n) + " requests of " +
                          std::to_string(under_way_));
    const uint64_t now = clock();
    uint64_t since = 0, alike = 0; // those of one batch have the same latency
    for (; used_next_ != idx; used_next_++) {
        uint32_t head;
        std::memcpy(&head, used_ + 4 + 8ull * (used_next_ & (size_ - 1)), sizeof(head));
        const uint32_t slot = head >> head_shift_;
        if (slot >= options_.depth || slot << head_shift_ != head)
            throw guest_error("the device answered " + std::to_string(head) +
                              ", which was never asked");
        r.errors += requests_[64ull * slot + 48] != blk_ok;
        if (submitted_[slot] != since) {
            if (alike)
                r.latency.add(now - since, alike);
            since = submitted_[slot];
            alike = 0;
        }
        alike++;
        under_way_--;
        if (more) {
            submitted_[slot] = now;
            submit(uint16_t(head));
        }
    }
    r.latency.add(now - since, alike);
    if (more)
        publish();
    r.requests += n;
    r.looks++;
    return n;
}

bool load_queue::arm() {
    word(avail_ + 2 + size_).store(used_next_, std::memory_order_relaxed); // used_event
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return word(used_ + 2).load(std::memory_order_acquire) == used_next_;
}

load::load(transport& device, const load_options& o) : options_(o) {
    const uint64_t offered = device.device_features();
    uint64_t wanted = bit(feature_version_1) | bit(feature_blk_size) | bit(feature_mq) |
                      bit(feature_flush) | bit(feature_seg_max) | bit(feature_config_wce);
    wanted |= o.indirect ? bit(feature_indirect) : 0;
    wanted |= o.interrupts ? bit(feature_event_idx) : 0;
    const uint64_t needed = bit(feature_version_1) | (o.indirect ? bit(feature_indirect) : 0) |
                            (o.interrupts ? bit(feature_event_idx) : 0);
    if (needed & ~offered)
        throw guest_error("the device does not offer " +
                          std::string(o.indirect && !(offered & bit(feature_indirect))
                                          ? "indirect descriptors"
                                          : "EVENT_IDX or VERSION_1"));
    if (o.read_percent < 100 && offered & bit(feature_ro))
        throw guest_error("the disk is read-only");
    device.set_driver_features(offered & wanted);
    if (o.queues > device.max_queues())
        throw guest_error("the device has " + std::to_string(device.max_queues()) +
                          " queues, not " + std::to_string(o.queues));
    blk_config config{};
    std::array<std::byte, blk_config_bytes> bytes;
    device.read_config(0, bytes);
    std::memcpy(&config, bytes.data(), bytes.size());
    if (o.block_bytes == 0 || o.block_bytes % std::max(config.blk_size, sector_bytes))
        throw guest_error("blocks of " + std::to_string(o.block_bytes) +
                          " bytes; the disk's have " + std::to_string(config.blk_size));
    const uint64_t blocks = config.capacity * sector_bytes / o.block_bytes;
    if (!blocks)
        throw guest_error("the disk is smaller than one block");
    // One slot, as a guest with huge pages has it.
    const uint64_t each = (256ull << 10) + uint64_t{o.depth} * (o.block_bytes + 128);
    const uint64_t size = (each * o.queues + (2ull << 20) - 1) & ~((2ull << 20) - 1);
    constexpr uint64_t base = 1ull << 30;
    memory_ = std::make_unique<guest_memory>(base, base + size);
    memory_->add_slot(base, size);
    std::vector<vring_setup> setups;
    for (unsigned q = 0; q < o.queues; q++) {
        queues_.push_back(std::make_unique<load_queue>(*memory_, o, blocks, q + 1));
        setups.push_back(queues_.back()->setup());
    }
    device.share_memory(*memory_);
    device.start_queues(setups);
}

load_result load::run() {
    const double per_tick = tick_ns();
    std::vector<pollfd> calls;
    for (auto& q : queues_)
        calls.push_back({q->call_fd(), POLLIN, 0});
    for (auto& q : queues_)
        q->start(ticks());
    auto warm = std::make_unique<load_result>();
    auto counted = std::make_unique<load_result>();
    load_result* r = warm.get();
    const auto in_ticks = [&](double seconds) { return uint64_t(seconds * 1e9 / per_tick); };
    std::optional<reading> begin;
    uint64_t end = ticks() + in_ticks(options_.warmup);
    uint64_t last_answer = ticks();
    bool answered = false; // since the clock was looked at
    for (unsigned spins = 0, idle = 0;; spins++) {
        unsigned n = 0;
        for (auto& q : queues_)
            n += q->turn(ticks, true, *r);
        idle = n ? 0 : idle + 1;
        answered |= n != 0;
        if (options_.interrupts && !n) {
            bool sleep = true;
            for (auto& q : queues_)
                sleep &= q->arm();
            if (sleep && ::poll(calls.data(), calls.size(), int(patience.count())) == 0)
                throw timeout_error("the device did not interrupt within 10 s");
            for (pollfd& p : calls)
                if (sleep && p.revents & POLLIN)
                    take_eventfd(p.fd, deadline(milliseconds(0)));
        }
        // The clock is looked at now and then, but for a device that is slow.
        if (n && spins % 64 && !options_.interrupts)
            continue;
        if (!n && idle % 256 && !options_.interrupts)
            continue;
        const uint64_t now = ticks();
        last_answer = answered ? now : last_answer;
        answered = false;
        if (now - last_answer > in_ticks(10))
            throw timeout_error("the device did not answer within 10 s");
        // Longer, where others had the CPUs all the time: no figures can be made of no requests.
        if (now < end || !r->requests)
            continue;
        if (begin)
            break;
        begin.emplace(options_.server_pid);
        // What was answered during that reading waited for us, not for the device.
        for (auto& q : queues_)
            q->turn(ticks, true, *r);
        begin->at = monotonic_ns();
        r = counted.get();
        end = ticks() + in_ticks(options_.seconds);
    }
    const reading after(options_.server_pid);
    load_result rest;
    const deadline until(patience);
    for (auto& q : queues_)
        while (!q->idle()) {
            if (options_.interrupts)
                q->arm();
            q->turn(ticks, false, rest);
            if (until.passed())
                throw timeout_error("requests were not answered at the end");
        }
    load_result out;
    out.latency = counted->latency.scaled(per_tick);
    out.requests = counted->requests;
    out.all_requests = warm->requests + counted->requests + rest.requests;
    out.errors = warm->errors + counted->errors + rest.errors;
    out.looks = counted->looks;
    out.seconds = double(after.at - begin->at) / 1e9;
    if (options_.server_pid)
        out.server_cpu_ns = after.server_ran - begin->server_ran;
    out.driver_wait_ns = after.self_waited - begin->self_waited;
    out.server_wait_ns = after.server_waited - begin->server_waited;
    out.steal_ns = after.steal - begin->steal;
    return out;
}

void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(size_t(cpu), &set);
    if (const int err = pthread_setaffinity_np(pthread_self(), sizeof(set), &set))
        throw guest_error("CPU " + std::to_string(cpu) + ": " + std::strerror(err));
}

std::unique_ptr<transport> connect(const std::string& path, milliseconds timeout) {
    if (path.rfind("/dev/vhost-vdpa", 0) == 0)
        return std::make_unique<vhost_vdpa_transport>(path, timeout);
    vhost_user_options o;
    o.timeout = timeout;
    return std::make_unique<vhost_user_transport>(path, o);
}

} // namespace vql::bench
