// SPDX-License-Identifier: GPL-2.0-only
#include "vhost_vdpa_transport.h"

#include <algorithm>
#include <unistd.h>

namespace vql::guest {

vhost_vdpa_transport::vhost_vdpa_transport(std::string path, milliseconds timeout)
    : path_(std::move(path)), timeout_(timeout), config_call_(make_eventfd()) {
    reconnect();
}

void vhost_vdpa_transport::disconnect() {
    client_.reset();
    mapped_.clear();
    suspended_ = false;
}

void vhost_vdpa_transport::reconnect() {
    disconnect();
    client_.emplace(path_, timeout_);
}

void vhost_vdpa_transport::set_status(uint8_t status) {
    client_->set_status(status);
    if (status == 0) {
        suspended_ = false;
    }
}

void vhost_vdpa_transport::set_driver_features(uint64_t features) {
    // Its addresses go through the map that we send, so the driver side of it is ours to accept.
    features |= device_features() & bit(feature_access_platform);
    set_status(0);
    uint8_t so_far = status_acknowledge | status_driver;
    set_status(so_far);
    // QEMU does so too: callbacks before there are any, and a look at the configuration before the
    // features are known.
    for (unsigned queue = 0; queue < max_queues(); queue++) {
        client_->set_vring_call(queue, -1);
    }
    client_->set_features(0);
    std::byte first{};
    read_config(0, std::span(&first, 1));
    client_->set_features(features);
    so_far |= status_features_ok;
    set_status(so_far);
    if ((status() & status_features_ok) == 0) {
        throw refused("the device does not take the features " + hex(features));
    }
}

void vhost_vdpa_transport::map_slot(uint64_t gpa, uint64_t bytes) {
    client_->map(gpa, memory_->span(gpa, bytes));
    mapped_.push_back({gpa, bytes});
}

// The whole map anew, in one batch.
void vhost_vdpa_transport::map_memory() {
    client_->begin_batch();
    for (const range& old : mapped_) {
        client_->unmap(old.iova, old.bytes);
    }
    mapped_.clear();
    for (const memory_slot& slot : memory_->slots()) {
        map_slot(slot.gpa, slot.bytes);
    }
    client_->end_batch();
}

void vhost_vdpa_transport::add_slot(const memory_slot& slot) {
    client_->begin_batch();
    map_slot(slot.gpa, slot.bytes);
    client_->end_batch();
}

void vhost_vdpa_transport::remove_slot(const memory_slot& slot) {
    client_->begin_batch();
    client_->unmap(slot.gpa, slot.bytes);
    client_->end_batch();
    std::erase_if(mapped_, [&slot](const range& old) { return old.iova == slot.gpa; });
}

void vhost_vdpa_transport::start_queues(std::span<const vring_setup> queues) {
    unsigned index = 0;
    for (const vring_setup& setup : queues) {
        client_->set_vring_num(index, setup.size);
        client_->set_vring_base(index, setup.base);
        client_->set_vring_addresses(index, {setup.desc, setup.avail, setup.used});
        client_->set_vring_kick(index, setup.kick_fd);
        client_->set_vring_call(index, setup.call_fd);
        index++;
    }
    for (index = 0; index < queues.size(); index++) {
        client_->enable_vring(index, true);
    }
    map_memory();
    take_eventfd(config_call_.get(), deadline(milliseconds(0))); // of the time before the reset
    client_->set_config_call(config_call_.get());
    set_status(status_acknowledge | status_driver | status_features_ok | status_driver_ok);
    index = 0;
    for (const vring_setup& setup : queues) {
        client_->set_vring_call(index++, setup.call_fd);
    }
    // No kick: what is in a ring when it starts has to be seen without one.
}

uint16_t vhost_vdpa_transport::stop_queue(unsigned queue) {
    if (!suspended_) {
        client_->suspend();
        suspended_ = true;
    }
    return static_cast<uint16_t>(client_->vring_base(queue));
}

bool vhost_vdpa_transport::wait_ring_error(unsigned, milliseconds timeout) {
    // vDPA has no error descriptor: the device says that it needs a reset.
    deadline until(timeout);
    while ((status() & status_needs_reset) == 0) {
        if (until.passed()) {
            return false;
        }
        usleep(1000);
    }
    return true;
}

} // namespace vql::guest
