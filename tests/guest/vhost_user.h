// SPDX-License-Identifier: GPL-2.0-only
// The vhost-user protocol as its front end sees it (QEMU's docs/interop/vhost-user.rst). Written
// from the specification and shared with nobody: if the daemon's own structures are wrong, these
// are not.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vql::guest {

enum vu_request : uint32_t {
    vu_get_features = 1,
    vu_set_features = 2,
    vu_set_owner = 3,
    vu_reset_owner = 4,
    vu_set_mem_table = 5,
    vu_set_log_base = 6,
    vu_set_log_fd = 7,
    vu_set_vring_num = 8,
    vu_set_vring_addr = 9,
    vu_set_vring_base = 10,
    vu_get_vring_base = 11,
    vu_set_vring_kick = 12,
    vu_set_vring_call = 13,
    vu_set_vring_err = 14,
    vu_get_protocol_features = 15,
    vu_set_protocol_features = 16,
    vu_get_queue_num = 17,
    vu_set_vring_enable = 18,
    vu_set_backend_req_fd = 21,
    vu_get_config = 24,
    vu_set_config = 25,
    vu_get_inflight_fd = 31,
    vu_set_inflight_fd = 32,
    vu_reset_device = 34,
    vu_get_max_mem_slots = 36,
    vu_add_mem_reg = 37,
    vu_rem_mem_reg = 38,
    vu_set_status = 39,
    vu_get_status = 40,
    vu_last_request = 43,
};

enum vu_backend_request : uint32_t {
    vu_backend_config_change = 2,
};

enum : uint32_t {
    vu_version = 1,
    vu_version_mask = 3,
    vu_reply = 4,
    vu_need_reply = 8,
};

enum vu_protocol_feature : unsigned {
    vu_feature_mq = 0,
    vu_feature_log_shmfd = 1,
    vu_feature_reply_ack = 3,
    vu_feature_backend_req = 5,
    vu_feature_config = 9,
    vu_feature_inflight_shmfd = 12,
    vu_feature_reset_device = 13,
    vu_feature_configure_mem_slots = 15,
    vu_feature_status = 16,
};

constexpr unsigned vu_max_regions = 8; // of one SET_MEM_TABLE: descriptors in one message
constexpr uint64_t vu_no_fd = 1 << 8;  // SET_VRING_KICK, CALL, ERR
constexpr uint64_t log_page_bytes = 4096;

struct vu_header {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
};
static_assert(sizeof(vu_header) == 12);

struct vu_vring_state {
    uint32_t index;
    uint32_t num;
};
static_assert(sizeof(vu_vring_state) == 8);

struct vu_vring_addr {
    uint32_t index;
    uint32_t flags;
    uint64_t desc;
    uint64_t used;
    uint64_t avail;
    uint64_t log;
};
static_assert(sizeof(vu_vring_addr) == 40);
constexpr uint32_t vu_vring_log = 1;

struct vu_region {
    uint64_t gpa;
    uint64_t bytes;
    uint64_t user_addr;
    uint64_t file_offset;
};
static_assert(sizeof(vu_region) == 32);

struct vu_mem_table {
    uint32_t count;
    uint32_t padding;
    vu_region regions[vu_max_regions];
};
static_assert(offsetof(vu_mem_table, regions) == 8);

struct vu_mem_reg {
    uint64_t padding;
    vu_region region;
};
static_assert(sizeof(vu_mem_reg) == 40);

struct vu_log {
    uint64_t bytes;
    uint64_t offset;
};
static_assert(sizeof(vu_log) == 16);

struct vu_config {
    uint32_t offset;
    uint32_t size;
    uint32_t flags;
    uint8_t payload[256];
};
static_assert(offsetof(vu_config, payload) == 12);
static_assert(sizeof(vu_config) == 268);

struct vu_inflight {
    uint64_t bytes;
    uint64_t offset;
    uint16_t queues;
    uint16_t queue_size;
    uint32_t tail; // the compiler's padding; the message on the wire is 20 bytes or 24
};
static_assert(offsetof(vu_inflight, queue_size) == 18);
static_assert(sizeof(vu_inflight) == 24);

// The in-flight area of split rings.
struct vu_inflight_descriptor {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};
static_assert(sizeof(vu_inflight_descriptor) == 16);

struct vu_inflight_queue {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    // vu_inflight_descriptor desc[desc_num] follows
};
static_assert(sizeof(vu_inflight_queue) == 16);

} // namespace vql::guest
