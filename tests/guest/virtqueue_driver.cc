// SPDX-License-Identifier: GPL-2.0-only
#include "virtqueue_driver.h"

#include <cstring>

namespace vql::guest {
namespace {

// §2.7.10: has the index gone past event since it was old?
bool event_passed(uint16_t event, uint16_t now, uint16_t old) {
    return static_cast<uint16_t>(now - event - 1) < static_cast<uint16_t>(now - old);
}

} // namespace

virtqueue_driver::virtqueue_driver(guest_memory& memory, const virtqueue_options& options)
    : memory_(memory), options_(options), kick_fd_(make_eventfd()), call_fd_(make_eventfd()),
      err_fd_(make_eventfd()), heads_(options.size), next_(options.size) {
    // The least alignment that the specification allows, so that a device that wants more fails.
    // One entry more than the table has, for tests that point there.
    desc_gpa_ = memory.allocate_in_one_slot(desc_table_bytes(size() + 1u), 64, 16);
    avail_gpa_ = memory.allocate_in_one_slot(avail_ring_bytes(size()), 16, 2);
    used_gpa_ = memory.allocate_in_one_slot(used_ring_bytes(size()), 16, 4);
    if (options.max_indirect != 0) {
        tables_gpa_ = memory.allocate(desc_table_bytes(options.max_indirect) * size(), 16);
    }
    desc_ = memory.as<vring_descriptor>(desc_gpa_);
    avail_ = memory.as<uint16_t>(avail_gpa_);
    used_ = memory.as<uint16_t>(used_gpa_);
    reset();
}

virtqueue_driver::~virtqueue_driver() {
    memory_.free(desc_gpa_, desc_table_bytes(size() + 1u));
    memory_.free(avail_gpa_, avail_ring_bytes(size()));
    memory_.free(used_gpa_, used_ring_bytes(size()));
    if (options_.max_indirect != 0) {
        memory_.free(tables_gpa_, desc_table_bytes(options_.max_indirect) * size());
    }
}

void virtqueue_driver::reset() {
    std::memset(desc_, 0, desc_table_bytes(size() + 1u));
    std::memset(avail_, 0, avail_ring_bytes(size()));
    std::memset(used_, 0, used_ring_bytes(size()));
    for (uint16_t i = 0; i < size(); i++) {
        heads_[i] = {};
        next_[i] = static_cast<uint16_t>(i + 1);
    }
    free_head_ = 0;
    free_count_ = size();
    in_flight_ = 0;
    avail_next_ = avail_told_ = used_next_ = used_cached_ = options_.first_index;
    avail_[1] = used_[1] = options_.first_index;
    interrupts_off_ = false;
    disarm_interrupt();
}

vring_setup virtqueue_driver::setup(uint16_t base) const {
    return {size(), desc_gpa_,      avail_gpa_,     used_gpa_,
            base,   kick_fd_.get(), call_fd_.get(), err_fd_.get()};
}

uint16_t virtqueue_driver::used_index() const {
    return device_used_index().load(std::memory_order_acquire);
}

bool virtqueue_driver::used_in_order() const {
    uint16_t used = used_index();
    std::vector<bool> answered(size());
    for (uint16_t i = used_next_; i != used; i++) {
        answered[used_element(i).id & mask()] = true;
    }
    std::vector<bool> seen(size());
    for (uint16_t i = used; i != avail_next_; i++) {
        uint16_t head = avail_[2 + (i & mask())];
        if (heads_[head].count == 0 || answered[head] || seen[head]) {
            return false;
        }
        seen[head] = true;
    }
    return true;
}

uint64_t virtqueue_driver::indirect_table(uint16_t head) const {
    return tables_gpa_ + desc_table_bytes(options_.max_indirect) * head;
}

void virtqueue_driver::write_chain(std::span<const segment> chain, uint16_t head) {
    uint16_t index = head;
    for (size_t i = 0; i < chain.size(); i++) {
        const segment& part = chain[i];
        bool last = i + 1 == chain.size();
        uint16_t flags = part.device_writes ? desc_write : 0;
        desc_[index] = {part.gpa, part.bytes, static_cast<uint16_t>(flags | (last ? 0 : desc_next)),
                        last ? uint16_t{0} : next_[index]};
        heads_[head].last = index;
        index = next_[index];
    }
    heads_[head].count = static_cast<uint16_t>(chain.size());
    free_head_ = index;
}

void virtqueue_driver::write_table(std::span<const segment> chain, uint16_t head) {
    auto* table = memory_.as<vring_descriptor>(indirect_table(head));
    for (size_t i = 0; i < chain.size(); i++) {
        bool last = i + 1 == chain.size();
        uint16_t flags = chain[i].device_writes ? desc_write : 0;
        table[i] = {chain[i].gpa, chain[i].bytes,
                    static_cast<uint16_t>(flags | (last ? 0 : desc_next)),
                    last ? uint16_t{0} : static_cast<uint16_t>(i + 1)};
    }
    desc_[head] = {indirect_table(head),
                   static_cast<uint32_t>(desc_table_bytes(static_cast<unsigned>(chain.size()))),
                   desc_indirect, 0};
    heads_[head].last = head;
    heads_[head].count = 1;
    free_head_ = next_[head];
}

bool virtqueue_driver::add(std::span<const segment> chain, uint32_t token, bool indirect) {
    if (chain.size() > (indirect ? options_.max_indirect : size())) {
        throw guest_error("a chain of " + std::to_string(chain.size()) + " descriptors");
    }
    if (free_count_ < (indirect ? 1 : chain.size())) {
        return false;
    }
    uint16_t head = free_head_;
    if (indirect) {
        write_table(chain, head);
    } else {
        write_chain(chain, head);
    }
    heads_[head].token = token;
    free_count_ -= heads_[head].count;
    in_flight_++;
    avail_[2 + (avail_next_ & mask())] = head;
    avail_next_++;
    return true;
}

void virtqueue_driver::publish() {
    // Release: the device that sees the index sees the entries, the descriptors and the buffers.
    avail_index().store(avail_next_, std::memory_order_release);
}

bool virtqueue_driver::kick_if_wanted() {
    // The index must be visible before we read whether the device sleeps; it does the same the
    // other way round (asks for a kick, then looks at the index). Store → load: a full fence.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool wanted;
    if (options_.event_idx) {
        wanted =
            event_passed(avail_event().load(std::memory_order_relaxed), avail_next_, avail_told_);
    } else {
        wanted = (used_flags().load(std::memory_order_relaxed) & used_no_notify) == 0;
    }
    bool news = avail_told_ != avail_next_;
    avail_told_ = avail_next_;
    if (wanted && news) {
        kick();
        return true;
    }
    return false;
}

std::optional<completion> virtqueue_driver::pop() {
    if (used_cached_ == used_next_) {
        // Acquire: used elements, status bytes and data were written before the index.
        used_cached_ = device_used_index().load(std::memory_order_acquire);
        if (used_cached_ == used_next_) {
            return std::nullopt;
        }
        if (static_cast<uint16_t>(used_cached_ - used_next_) > in_flight_) {
            throw guest_error("the device used " +
                              std::to_string(static_cast<uint16_t>(used_cached_ - used_next_)) +
                              " chains, but only " + std::to_string(in_flight_) +
                              " were in flight");
        }
    }
    vring_used_element element = used_element(used_next_);
    if (element.id >= size() || heads_[element.id].count == 0) {
        throw guest_error("the device used head " + std::to_string(element.id) +
                          ", which is not in flight: answered twice, or never asked");
    }
    head_state& head = heads_[element.id];
    next_[head.last] = free_head_;
    free_head_ = static_cast<uint16_t>(element.id);
    free_count_ += head.count;
    head.count = 0;
    in_flight_--;
    used_next_++;
    if (options_.event_idx && interrupts_off_ && (used_next_ & 0x3fff) == 0) {
        disarm_interrupt(); // keeps the event out of reach while the index goes round
    }
    return completion{head.token, element.len};
}

bool virtqueue_driver::arm_interrupt(uint16_t after) {
    interrupts_off_ = false;
    if (options_.event_idx) {
        used_event().store(static_cast<uint16_t>(used_next_ + after - 1),
                           std::memory_order_relaxed);
    } else {
        avail_flags().store(0, std::memory_order_relaxed);
    }
    // The wish must be visible before we look whether it came too late. Store → load again.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return static_cast<uint16_t>(device_used_index().load(std::memory_order_acquire) - used_next_) <
           after;
}

void virtqueue_driver::disarm_interrupt() {
    interrupts_off_ = true;
    if (options_.event_idx) {
        // There is no "never": an index that is half a round away comes near only after 32768 more.
        used_event().store(static_cast<uint16_t>(used_next_ + 0x8000), std::memory_order_relaxed);
    } else {
        avail_flags().store(avail_no_interrupt, std::memory_order_relaxed);
    }
}

void virtqueue_driver::publish_head(uint16_t head) {
    avail_[2 + (avail_next_ & mask())] = head;
    avail_next_++;
    publish();
}

void virtqueue_driver::publish_index(uint16_t index) {
    avail_index().store(index, std::memory_order_release);
}

vring_used_element virtqueue_driver::used_element(uint16_t index) const {
    vring_used_element element;
    std::memcpy(&element, used_ + 2 + size_t{4} * (index & mask()), sizeof(element));
    return element;
}

} // namespace vql::guest
