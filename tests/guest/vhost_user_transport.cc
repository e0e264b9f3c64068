// SPDX-License-Identifier: GPL-2.0-only
#include "vhost_user_transport.h"

#include <algorithm>

namespace vql::guest {

vu_region region_of(const memory_slot& slot) {
    return {slot.gpa, slot.bytes, slot.user_addr, slot.file_offset};
}

vhost_user_transport::vhost_user_transport(std::string path, const vhost_user_options& options)
    : path_(std::move(path)), options_(options) {
    reconnect();
}

void vhost_user_transport::reconnect() {
    client_.reset();
    client_.emplace(path_, options_.timeout);
    uint64_t features = client_->get_features();
    if ((features & bit(feature_protocol)) != 0) {
        client_->set_protocol_features(client_->get_protocol_features() &
                                       options_.protocol_features);
    }
    client_->set_owner();
    if (client_->has(vu_feature_backend_req)) {
        client_->set_backend_req_fd();
    }
}

void vhost_user_transport::set_driver_features(uint64_t features) {
    driver_features_ = features | bit(feature_protocol);
    if (client_->has(vu_feature_status)) {
        client_->set_status(status_acknowledge | status_driver);
    }
    client_->set_features(driver_features_);
    if (client_->has(vu_feature_status)) {
        client_->set_status(status_acknowledge | status_driver | status_features_ok);
        if ((client_->get_status() & status_features_ok) == 0) {
            throw refused("the device does not take the features " + hex(driver_features_));
        }
    }
}

unsigned vhost_user_transport::max_queues() {
    return client_->has(vu_feature_mq) ? static_cast<unsigned>(client_->get_queue_num()) : 1;
}

void vhost_user_transport::share_memory(const guest_memory& memory) {
    memory_ = &memory;
    if (options_.slots_one_by_one || memory.slots().size() > vu_max_regions) {
        if (client_->get_max_mem_slots() < memory.slots().size()) {
            throw refused("the device takes fewer memory slots than the guest has");
        }
        for (const memory_slot& slot : memory.slots()) {
            add_slot(slot);
        }
        return;
    }
    std::vector<vu_region> regions;
    std::vector<int> fds;
    for (const memory_slot& slot : memory.slots()) {
        regions.push_back(region_of(slot));
        fds.push_back(slot.file->get());
    }
    client_->set_mem_table(regions, fds);
}

void vhost_user_transport::add_slot(const memory_slot& slot) {
    client_->add_mem_reg(region_of(slot), slot.file->get());
}

void vhost_user_transport::remove_slot(const memory_slot& slot) {
    client_->rem_mem_reg(region_of(slot));
}

void vhost_user_transport::share_inflight_area(unsigned queues, uint16_t queue_size) {
    if (!client_->has(vu_feature_inflight_shmfd)) {
        return;
    }
    if (!inflight_fd_) {
        inflight_ =
            client_->get_inflight_fd(static_cast<uint16_t>(queues), queue_size, inflight_fd_);
    }
    client_->set_inflight_fd(inflight_, inflight_fd_.get());
}

vu_vring_addr vhost_user_transport::vring_addr(unsigned queue, const vring_setup& setup) const {
    return {queue,
            options_.log_used_rings ? vu_vring_log : 0,
            memory_->user_addr(setup.desc),
            memory_->user_addr(setup.used),
            memory_->user_addr(setup.avail),
            setup.used};
}

void vhost_user_transport::start_queues(std::span<const vring_setup> queues) {
    uint16_t largest = 0;
    for (const vring_setup& setup : queues) {
        largest = std::max(largest, setup.size);
    }
    share_inflight_area(static_cast<unsigned>(queues.size()), largest);
    err_fds_.clear();
    unsigned index = 0;
    for (const vring_setup& setup : queues) {
        err_fds_.push_back(setup.err_fd);
        client_->set_vring_num(index, setup.size);
        client_->set_vring_base(index, setup.base);
        client_->set_vring_addr(vring_addr(index, setup));
        client_->set_vring_fd(vu_set_vring_err, index, setup.err_fd);
        client_->set_vring_fd(vu_set_vring_kick, index, setup.kick_fd);
        if (!options_.call_last) { // as QEMU does it
            client_->set_vring_fd(vu_set_vring_call, index, setup.call_fd);
        }
        index++;
    }
    for (index = 0; index < queues.size(); index++) {
        client_->set_vring_enable(index, true);
        if (options_.call_last) {
            client_->set_vring_fd(vu_set_vring_call, index, queues[index].call_fd);
        }
    }
    if (client_->has(vu_feature_status)) {
        client_->set_status(status_acknowledge | status_driver | status_features_ok |
                            status_driver_ok);
    }
    // A ring starts with its first kick; there may be something in it already.
    for (const vring_setup& setup : queues) {
        signal_eventfd(setup.kick_fd);
    }
}

uint16_t vhost_user_transport::stop_queue(unsigned queue) {
    return static_cast<uint16_t>(client_->get_vring_base(queue));
}

void vhost_user_transport::read_config(uint32_t offset, std::span<std::byte> bytes) {
    auto content = client_->get_config(offset, static_cast<uint32_t>(bytes.size()));
    std::copy(content.begin(), content.end(), bytes.begin());
}

void vhost_user_transport::write_config(uint32_t offset, std::span<const std::byte> bytes) {
    client_->set_config(offset, bytes);
}

} // namespace vql::guest
