// SPDX-License-Identifier: GPL-2.0-only
#include "vhost_vdpa_client.h"

#include "virtio.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#define VIRTIO_RING_NO_LEGACY // inline functions that are no C++
#include <linux/vhost.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <vector>

// Younger than the headers of Debian 12; VHOST_VDPA_RESUME is Linux 6.3.
#ifndef VHOST_VDPA_RESUME
#define VHOST_VDPA_RESUME _IO(VHOST_VIRTIO, 0x7E)
#endif

namespace vql::guest {
namespace {

constexpr uint64_t wanted_backend_features = bit(backend_iotlb_msg_v2) | bit(backend_iotlb_batch) |
                                             bit(backend_suspend) | bit(backend_resume);

unique_fd open_node(const std::string& path, const deadline& until) {
    for (;;) {
        unique_fd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
        if (fd) {
            return fd;
        }
        if ((errno != ENOENT && errno != EBUSY) || until.passed()) {
            throw_errno("cannot open " + path);
        }
        usleep(1000);
    }
}

// struct vhost_vdpa_config: offset, length, content.
std::vector<std::byte> config_message(uint32_t offset, std::span<const std::byte> content) {
    const uint32_t head[2] = {offset, static_cast<uint32_t>(content.size())};
    static_assert(sizeof(head) == sizeof(vhost_vdpa_config));
    std::vector<std::byte> message(sizeof(head) + content.size());
    std::memcpy(message.data(), head, sizeof(head));
    std::copy(content.begin(), content.end(), message.begin() + sizeof(head));
    return message;
}

} // namespace

vhost_vdpa_client::vhost_vdpa_client(const std::string& path, milliseconds timeout) : path_(path) {
    // vhost-vdpa pins all of the guest's memory, and at the limit it says no more than EFAULT.
    rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_MEMLOCK, &unlimited);
    fd_ = open_node(path, deadline(timeout));
    command("VHOST_SET_OWNER", VHOST_SET_OWNER);
    uint64_t offered = 0;
    command("VHOST_GET_BACKEND_FEATURES", VHOST_GET_BACKEND_FEATURES, &offered);
    backend_features_ = offered & wanted_backend_features;
    command("VHOST_SET_BACKEND_FEATURES", VHOST_SET_BACKEND_FEATURES, &backend_features_);
}

void vhost_vdpa_client::command(const char* name, unsigned long request, void* argument) const {
    int result;
    do {
        result = ioctl(fd_.get(), request, argument);
    } while (result < 0 && errno == EINTR);
    if (result < 0) {
        throw refused(path_ + ": " + name + ": " + std::strerror(errno));
    }
}

void vhost_vdpa_client::command(const char* name, unsigned long request) const {
    command(name, request, nullptr);
}

uint32_t vhost_vdpa_client::device_id() const {
    uint32_t id = 0;
    command("VHOST_VDPA_GET_DEVICE_ID", VHOST_VDPA_GET_DEVICE_ID, &id);
    return id;
}

uint64_t vhost_vdpa_client::features() const {
    uint64_t features = 0;
    command("VHOST_GET_FEATURES", VHOST_GET_FEATURES, &features);
    return features;
}

void vhost_vdpa_client::set_features(uint64_t features) {
    command("VHOST_SET_FEATURES", VHOST_SET_FEATURES, &features);
}

uint8_t vhost_vdpa_client::status() const {
    uint8_t status = 0;
    command("VHOST_VDPA_GET_STATUS", VHOST_VDPA_GET_STATUS, &status);
    return status;
}

void vhost_vdpa_client::set_status(uint8_t status) {
    command("VHOST_VDPA_SET_STATUS", VHOST_VDPA_SET_STATUS, &status);
}

void vhost_vdpa_client::read_config(uint32_t offset, std::span<std::byte> bytes) const {
    std::vector<std::byte> message = config_message(offset, bytes);
    command("VHOST_VDPA_GET_CONFIG", VHOST_VDPA_GET_CONFIG, message.data());
    std::copy_n(message.begin() + sizeof(vhost_vdpa_config), bytes.size(), bytes.begin());
}

void vhost_vdpa_client::write_config(uint32_t offset, std::span<const std::byte> bytes) {
    std::vector<std::byte> message = config_message(offset, bytes);
    command("VHOST_VDPA_SET_CONFIG", VHOST_VDPA_SET_CONFIG, message.data());
}

uint32_t vhost_vdpa_client::config_bytes() const {
    uint32_t bytes = 0;
    command("VHOST_VDPA_GET_CONFIG_SIZE", VHOST_VDPA_GET_CONFIG_SIZE, &bytes);
    return bytes;
}

void vhost_vdpa_client::set_config_call(int fd) {
    command("VHOST_VDPA_SET_CONFIG_CALL", VHOST_VDPA_SET_CONFIG_CALL, &fd);
}

unsigned vhost_vdpa_client::queues() const {
    uint32_t count = 0;
    command("VHOST_VDPA_GET_VQS_COUNT", VHOST_VDPA_GET_VQS_COUNT, &count);
    return count;
}

uint16_t vhost_vdpa_client::max_queue_size() const {
    uint16_t size = 0;
    command("VHOST_VDPA_GET_VRING_NUM", VHOST_VDPA_GET_VRING_NUM, &size);
    return size;
}

unsigned vhost_vdpa_client::groups() const {
    uint32_t count = 0;
    command("VHOST_VDPA_GET_GROUP_NUM", VHOST_VDPA_GET_GROUP_NUM, &count);
    return count;
}

unsigned vhost_vdpa_client::address_spaces() const {
    uint32_t count = 0;
    command("VHOST_VDPA_GET_AS_NUM", VHOST_VDPA_GET_AS_NUM, &count);
    return count;
}

void vhost_vdpa_client::set_vring_num(unsigned queue, unsigned size) {
    vhost_vring_state state{queue, size};
    command("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM, &state);
}

void vhost_vdpa_client::set_vring_base(unsigned queue, unsigned base) {
    vhost_vring_state state{queue, base};
    command("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE, &state);
}

unsigned vhost_vdpa_client::vring_base(unsigned queue) const {
    vhost_vring_state state{queue, 0};
    command("VHOST_GET_VRING_BASE", VHOST_GET_VRING_BASE, &state);
    return state.num;
}

void vhost_vdpa_client::set_vring_addresses(unsigned queue, const vhost_ring_addresses& iova) {
    vhost_vring_addr addr{queue, 0, iova.desc, iova.used, iova.avail, 0};
    command("VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR, &addr);
}

void vhost_vdpa_client::set_vring_kick(unsigned queue, int fd) {
    vhost_vring_file file{queue, fd};
    command("VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK, &file);
}

void vhost_vdpa_client::set_vring_call(unsigned queue, int fd) {
    vhost_vring_file file{queue, fd};
    command("VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL, &file);
}

void vhost_vdpa_client::enable_vring(unsigned queue, bool on) {
    vhost_vring_state state{queue, on ? 1u : 0u};
    command("VHOST_VDPA_SET_VRING_ENABLE", VHOST_VDPA_SET_VRING_ENABLE, &state);
}

void vhost_vdpa_client::suspend() {
    command("VHOST_VDPA_SUSPEND", VHOST_VDPA_SUSPEND);
}

void vhost_vdpa_client::resume() {
    command("VHOST_VDPA_RESUME", VHOST_VDPA_RESUME);
}

void vhost_vdpa_client::send_iotlb(const char* name, uint8_t type, uint64_t iova, uint64_t bytes,
                                   void* at, uint8_t permission) {
    vhost_msg_v2 message{};
    message.type = VHOST_IOTLB_MSG_V2;
    message.iotlb.iova = iova;
    message.iotlb.size = bytes;
    message.iotlb.uaddr = reinterpret_cast<uint64_t>(at);
    message.iotlb.perm = permission;
    message.iotlb.type = type;
    if (write(fd_.get(), &message, sizeof(message)) != sizeof(message)) {
        throw refused(path_ + ": IOTLB " + name + " of " + std::to_string(bytes) + " bytes at " +
                      hex(iova) + ": " + std::strerror(errno));
    }
}

void vhost_vdpa_client::begin_batch() {
    if (has(backend_iotlb_batch)) {
        send_iotlb("batch begin", VHOST_IOTLB_BATCH_BEGIN, 0, 0, nullptr, 0);
    }
}

void vhost_vdpa_client::end_batch() {
    if (has(backend_iotlb_batch)) {
        send_iotlb("batch end", VHOST_IOTLB_BATCH_END, 0, 0, nullptr, 0);
    }
}

void vhost_vdpa_client::map(uint64_t iova, std::span<std::byte> memory, bool device_writes) {
    send_iotlb("update", VHOST_IOTLB_UPDATE, iova, memory.size(), memory.data(),
               device_writes ? VHOST_ACCESS_RW : VHOST_ACCESS_RO);
}

void vhost_vdpa_client::unmap(uint64_t iova, uint64_t bytes) {
    send_iotlb("invalidate", VHOST_IOTLB_INVALIDATE, iova, bytes, nullptr, 0);
}

} // namespace vql::guest
