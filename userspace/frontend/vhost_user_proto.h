// SPDX-License-Identifier: GPL-2.0-only
// The vhost-user wire format (QEMU docs/interop/vhost-user.rst), and the reader that cuts a byte
// stream into messages. No sockets and no state of a device here, so that it can be fuzzed.
#pragma once

#include "base/fd.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace vql::vhost_user {

enum request_type : uint32_t {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SET_BACKEND_REQ_FD = 21,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    RESET_DEVICE = 34,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
};

enum backend_request_type : uint32_t { BACKEND_CONFIG_CHANGE_MSG = 2 };

enum protocol_feature : uint32_t {
    PROTOCOL_F_MQ = 0,
    PROTOCOL_F_LOG_SHMFD = 1,
    PROTOCOL_F_REPLY_ACK = 3,
    PROTOCOL_F_BACKEND_REQ = 5,
    PROTOCOL_F_CONFIG = 9,
    PROTOCOL_F_INFLIGHT_SHMFD = 12,
    PROTOCOL_F_RESET_DEVICE = 13,
    PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15,
    PROTOCOL_F_STATUS = 16,
};

// Feature bits of vhost itself, besides those of virtio.
enum : uint32_t { F_LOG_ALL = 26, F_PROTOCOL_FEATURES = 30 };

enum : uint32_t {
    VERSION_MASK = 3,
    VERSION = 1,
    FLAG_REPLY = 1u << 2,
    FLAG_NEED_REPLY = 1u << 3,
};

// SET_VRING_KICK, CALL, ERR: bits of the u64.
constexpr uint64_t VRING_IDX_MASK = 0xff;
constexpr uint64_t VRING_NOFD = 0x100;

constexpr uint32_t VRING_F_LOG = 1; // vring_addr.flags

struct header {
    uint32_t request;
    uint32_t flags;
    uint32_t size; // of the payload
};
static_assert(sizeof(header) == 12);

struct vring_state {
    uint32_t index;
    uint32_t num;
};
static_assert(sizeof(vring_state) == 8);

struct vring_addr {
    uint32_t index;
    uint32_t flags;
    uint64_t desc;
    uint64_t used;
    uint64_t avail;
    uint64_t log;
};
static_assert(sizeof(vring_addr) == 40);

struct mem_region {
    uint64_t guest;
    uint64_t bytes;
    uint64_t vmm;
    uint64_t file_offset;
};
static_assert(sizeof(mem_region) == 32);

constexpr uint32_t max_table_regions = 8;

struct mem_table {
    uint32_t nregions;
    uint32_t padding;
    std::array<mem_region, max_table_regions> region;
};
static_assert(sizeof(mem_table) == 8 + 32 * max_table_regions);

struct single_region {
    uint64_t padding;
    mem_region region;
};
static_assert(sizeof(single_region) == 40);

struct log_desc {
    uint64_t bytes;
    uint64_t offset;
};
static_assert(sizeof(log_desc) == 16);

struct inflight_request {
    uint64_t bytes;
    uint64_t offset;
    uint16_t queues;
    uint16_t queue_size;
    uint8_t padding[4];
};
static_assert(sizeof(inflight_request) == 24);

constexpr uint32_t max_config_bytes = 256;

struct config_space {
    uint32_t offset;
    uint32_t size;
    uint32_t flags;
    std::array<uint8_t, max_config_bytes> data;
};
constexpr size_t config_header_bytes = offsetof(config_space, data);
static_assert(config_header_bytes == 12);

constexpr size_t max_payload_bytes = 512;
static_assert(sizeof(mem_table) <= max_payload_bytes && sizeof(config_space) <= max_payload_bytes);
constexpr size_t max_message_fds = 8;

// One message, its descriptors owned.
struct message {
    header head{};
    std::array<uint8_t, max_payload_bytes> payload{};
    std::vector<unique_fd> fds;

    bool need_reply() const { return head.flags & FLAG_NEED_REPLY; }
    // The payload as a T. Only after the size was checked (check_message).
    template <class T>
    T as() const {
        T value{};
        std::memcpy(&value, payload.data(), std::min(sizeof(T), size_t{head.size}));
        return value;
    }
};

const char* request_name(uint32_t request);

// Is the message one we know, of the size and with the descriptors its type has? Null when it is,
// else the reason for the log. Numbers inside the payload are the handler's to judge.
const char* check_message(const message& m);

// Cuts a stream into messages. Usage: read at most want().size() bytes into want(), tell got();
// when complete() take(). After an error() the stream is useless.
class message_reader {
  public:
    std::span<uint8_t> want();
    void got(size_t bytes, std::vector<unique_fd> fds);
    bool complete() const { return have_ >= sizeof(header) && have_ == sizeof(header) + size_; }
    const char* error() const { return error_; }
    message take();

  private:
    std::array<uint8_t, sizeof(header)> head_{};
    message current_;
    size_t have_ = 0; // bytes of header and payload read so far
    size_t size_ = 0; // payload size, once the header is whole
    const char* error_ = nullptr;
};

} // namespace vql::vhost_user
