// SPDX-License-Identifier: GPL-2.0-only
#include "blk_driver.h"

#include <cstring>
#include <poll.h>
#include <sched.h>

namespace vql::guest {
namespace {

constexpr unsigned max_queues = 64;
constexpr uint64_t request_bytes = 64; // header at 0, range at 16, status at 48
constexpr uint64_t wanted_features =
    bit(feature_seg_max) | bit(feature_ro) | bit(feature_blk_size) | bit(feature_flush) |
    bit(feature_topology) | bit(feature_config_wce) | bit(feature_mq) | bit(feature_discard) |
    bit(feature_write_zeroes) | bit(feature_version_1);
// Scratch memory of one-at-a-time requests is given back after each.
struct scratch {
    guest_memory& memory;
    uint64_t bytes;
    uint64_t gpa;
    scratch(guest_memory& m, uint64_t n)
        : memory(m), bytes(n == 0 ? 1 : n), gpa(m.allocate(bytes, 4096)) {}
    scratch(const scratch&) = delete;
    scratch& operator=(const scratch&) = delete;
    ~scratch() { memory.free(gpa, bytes); }
};

} // namespace

uint32_t expected_used_bytes(const blk_request& request) {
    if (request.status == blk_ok) {
        return request.data_in + 1;
    }
    return request.data_in == 0 ? 1 : 0;
}

blk_driver::blk_driver(guest_memory& memory, transport& device, const blk_options& options)
    : memory_(memory), device_(device), options_(options), requests_(options.queues),
      base_(options.queues), interrupted_(options.queues) {
    unsigned depth = options.depth == 0 ? options.queue_size : options.depth;
    for (unsigned q = 0; q < options.queues; q++) {
        virtqueue_options ring;
        ring.size = options.queue_size;
        ring.event_idx = options.event_idx;
        ring.max_indirect = options.indirect ? options.max_indirect : uint16_t{0};
        ring.first_index = options.first_index;
        queues_.push_back(std::make_unique<virtqueue_driver>(memory, ring));
        uint64_t gpa = memory.allocate(request_bytes * depth, request_bytes);
        for (unsigned i = 0; i < depth; i++, gpa += request_bytes) {
            auto request = std::make_unique<blk_request>();
            request->queue = q;
            request->token = i;
            request->header_gpa = gpa;
            request->range_gpa = gpa + 16;
            request->own_status_gpa = gpa + 48;
            requests_[q].all.push_back(std::move(request));
        }
    }
    reset_requests();
}

void blk_driver::reset_requests() {
    for (queue_requests& requests : requests_) {
        requests.free.clear();
        requests.free.reserve(requests.all.size());
        for (auto it = requests.all.rbegin(); it != requests.all.rend(); ++it) {
            (*it)->in_flight = false;
            requests.free.push_back(it->get());
        }
    }
}

void blk_driver::negotiate() {
    uint64_t wanted = wanted_features;
    wanted |= options_.indirect ? bit(feature_indirect) : 0;
    wanted |= options_.event_idx ? bit(feature_event_idx) : 0;
    // LOG_ALL is the hypervisor's to ask for, never the driver's by itself.
    features_ = device_.device_features() & wanted & options_.features;
    if (options_.indirect && (features_ & bit(feature_indirect)) == 0) {
        throw guest_error("the device does not offer indirect descriptors");
    }
    if (options_.event_idx && (features_ & bit(feature_event_idx)) == 0) {
        throw guest_error("the device does not offer EVENT_IDX");
    }
    device_.set_driver_features(features_);
    if (options_.queues > device_.max_queues()) {
        throw guest_error("the device has only " + std::to_string(device_.max_queues()) +
                          " queues");
    }
    device_.share_memory(memory_);
}

void blk_driver::start() {
    std::vector<vring_setup> setups;
    for (auto& queue : queues_) {
        queue->reset();
        if (options_.interrupts_only) {
            queue->arm_interrupt();
        }
        setups.push_back(queue->setup(queue->first_index()));
    }
    reset_requests();
    interrupted_.assign(queues_.size(), false);
    stopped_ = false;
    device_.forget_rings();
    negotiate();
    device_.start_queues(setups);
}

void blk_driver::resume() {
    negotiate();
    std::vector<vring_setup> setups;
    for (size_t q = 0; q < queues_.size(); q++) {
        setups.push_back(queues_[q]->setup(stopped_ ? base_[q] : queues_[q]->used_index()));
    }
    stopped_ = false;
    device_.start_queues(setups);
}

void blk_driver::stop() {
    for (unsigned q = 0; q < queues_.size(); q++) {
        base_[q] = device_.stop_queue(q);
    }
    stopped_ = true;
}

blk_config blk_driver::config() {
    blk_config config{};
    std::array<std::byte, blk_config_bytes> bytes;
    device_.read_config(0, bytes);
    std::memcpy(&config, bytes.data(), bytes.size());
    return config;
}

unsigned blk_driver::in_flight() const {
    unsigned count = 0;
    for (const auto& queue : queues_) {
        count += queue->in_flight();
    }
    return count;
}

blk_request* blk_driver::acquire(unsigned queue) {
    auto& free = requests_[queue].free;
    if (free.empty()) {
        return nullptr;
    }
    blk_request* request = free.back();
    free.pop_back();
    return request;
}

void blk_driver::release(blk_request& request) {
    requests_[request.queue].free.push_back(&request);
}

void blk_driver::shape(blk_request& request, blk_op op, uint64_t sector, uint64_t data_gpa,
                       uint32_t bytes) {
    bool in = op == blk_op::read || op == blk_op::get_id;
    request.type = static_cast<uint32_t>(op);
    request.sector = sector;
    request.segments = 0;
    request.indirect = false;
    request.data_in = in ? bytes : 0;
    request.status_gpa = request.own_status_gpa;
    *memory_.as<blk_header>(request.header_gpa) = {request.type, 0, sector};
    request.chain[request.segments++] = {request.header_gpa, sizeof(blk_header), false};
    if (bytes != 0) {
        request.chain[request.segments++] = {data_gpa, bytes, in};
    }
    request.chain[request.segments++] = {request.status_gpa, 1, true};
}

void blk_driver::shape_range(blk_request& request, blk_op op, const blk_range& range) {
    *memory_.as<blk_range>(request.range_gpa) = range;
    shape(request, op, 0, request.range_gpa, sizeof(range));
}

bool blk_driver::submit(blk_request& request) {
    *memory_.at(request.status_gpa) = std::byte{blk_unwritten};
    request.status = blk_unwritten;
    if (!queues_[request.queue]->add(request.parts(), request.token, request.indirect)) {
        return false;
    }
    request.in_flight = true;
    return true;
}

void blk_driver::ring(unsigned queue) {
    queues_[queue]->publish();
    queues_[queue]->kick_if_wanted();
}

// Was the driver called for this queue since it last found it empty?
bool blk_driver::may_look(unsigned queue) {
    if (!interrupted_[queue]) {
        interrupted_[queue] =
            take_eventfd(queues_[queue]->call_fd(), deadline(milliseconds(0))) != 0;
        if (interrupted_[queue]) {
            queues_[queue]->disarm_interrupt();
        }
    }
    return interrupted_[queue];
}

blk_request* blk_driver::poll(unsigned queue) {
    if (options_.interrupts_only && !may_look(queue)) {
        return nullptr;
    }
    std::optional<completion> done = queues_[queue]->pop();
    if (!done && options_.interrupts_only) {
        interrupted_[queue] = !queues_[queue]->arm_interrupt();
        if (interrupted_[queue]) { // they came meanwhile
            queues_[queue]->disarm_interrupt();
            done = queues_[queue]->pop();
        }
    }
    if (!done) {
        return nullptr;
    }
    blk_request& request = *requests_[queue].all[done->token];
    request.in_flight = false;
    request.status = static_cast<uint8_t>(*memory_.at(request.status_gpa));
    request.used_bytes = done->bytes;
    if (request.status == blk_unwritten) {
        throw guest_error("a request of type " + std::to_string(request.type) +
                          " completed without a status");
    }
    if (request.used_bytes != expected_used_bytes(request) &&
        (request.ok() || options_.check_failed_used_bytes)) {
        throw guest_error("used.len of a request of type " + std::to_string(request.type) +
                          " with status " + std::to_string(request.status) + " is " +
                          std::to_string(request.used_bytes) + ", not " +
                          std::to_string(expected_used_bytes(request)));
    }
    return &request;
}

bool blk_driver::sleep_until_interrupt(unsigned first, unsigned end, const deadline& until) {
    const bool only = options_.interrupts_only; // then poll() arms, and takes the interrupt
    bool idle = true;
    for (unsigned q = first; q < end && !only; q++) {
        idle = queues_[q]->arm_interrupt() && idle;
    }
    if (idle) {
        std::array<pollfd, max_queues> entries;
        for (unsigned q = first; q < end; q++) {
            entries[q - first] = {queues_[q]->call_fd(), POLLIN, 0};
        }
        int ready = ::poll(entries.data(), end - first, until.poll_ms());
        if (ready < 0 && errno != EINTR) {
            throw_errno("poll");
        }
        for (unsigned i = 0; ready > 0 && !only && i < end - first; i++) {
            if ((entries[i].revents & POLLIN) != 0) {
                take_eventfd(entries[i].fd, until);
            }
        }
        idle = ready == 0;
    }
    for (unsigned q = first; q < end && !only; q++) {
        queues_[q]->disarm_interrupt();
    }
    return !idle;
}

blk_request& blk_driver::next(milliseconds timeout) {
    return wait_for(0, static_cast<unsigned>(queues_.size()), timeout);
}

blk_request& blk_driver::wait_for(unsigned first, unsigned end, milliseconds timeout) {
    deadline until(timeout);
    for (unsigned spins = 0;; spins++) {
        for (unsigned i = first; i < end; i++) {
            next_queue_ = next_queue_ + 1 < end && next_queue_ >= first ? next_queue_ + 1 : first;
            if (blk_request* request = poll(next_queue_)) {
                return *request;
            }
        }
        bool timed_out = false;
        if (options_.interrupts) {
            timed_out = !sleep_until_interrupt(first, end, until);
        } else if (spins % 256 == 255) {
            sched_yield(); // the device may need this CPU
            timed_out = until.passed();
        }
        if (timed_out) {
            throw timeout_error(std::to_string(in_flight()) +
                                " requests in flight and no completion in time");
        }
    }
}

blk_result blk_driver::execute(blk_request& request) {
    if (!submit(request)) {
        throw guest_error("the ring is full");
    }
    ring(request.queue);
    blk_request& done = wait_for(request.queue, request.queue + 1, default_timeout());
    if (&done != &request) {
        throw guest_error("another request than the one submitted completed");
    }
    release(request);
    return {request.status, request.used_bytes};
}

blk_result blk_driver::transfer(blk_op op, uint64_t sector, uint64_t gpa, size_t bytes,
                                unsigned queue) {
    blk_request* request = acquire(queue);
    if (request == nullptr) {
        throw guest_error("no free request");
    }
    shape(*request, op, sector, gpa, static_cast<uint32_t>(bytes));
    return execute(*request);
}

blk_result blk_driver::read(uint64_t sector, std::span<std::byte> data, unsigned queue) {
    scratch buffer(memory_, data.size());
    std::memset(memory_.at(buffer.gpa), 0xdb, buffer.bytes);
    blk_result result = transfer(blk_op::read, sector, buffer.gpa, data.size(), queue);
    if (!data.empty()) {
        std::memcpy(data.data(), memory_.at(buffer.gpa), data.size());
    }
    return result;
}

blk_result blk_driver::write(uint64_t sector, std::span<const std::byte> data, unsigned queue) {
    scratch buffer(memory_, data.size());
    if (!data.empty()) {
        std::memcpy(memory_.at(buffer.gpa), data.data(), data.size());
    }
    return transfer(blk_op::write, sector, buffer.gpa, data.size(), queue);
}

blk_result blk_driver::flush(unsigned queue) {
    return transfer(blk_op::flush, 0, 0, 0, queue);
}

blk_result blk_driver::discard(const blk_range& range, unsigned queue) {
    blk_request* request = acquire(queue);
    shape_range(*request, blk_op::discard, range);
    return execute(*request);
}

blk_result blk_driver::write_zeroes(const blk_range& range, unsigned queue) {
    blk_request* request = acquire(queue);
    shape_range(*request, blk_op::write_zeroes, range);
    return execute(*request);
}

blk_result blk_driver::get_id(std::string& id, unsigned queue) {
    scratch buffer(memory_, id_bytes);
    blk_result result = transfer(blk_op::get_id, 0, buffer.gpa, id_bytes, queue);
    const char* text = memory_.as<const char>(buffer.gpa);
    id.assign(text, strnlen(text, id_bytes));
    return result;
}

} // namespace vql::guest
