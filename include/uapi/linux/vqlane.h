/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The interface between vqlane.ko and its daemon.
 *
 *   /dev/vqlane/control            disks and guest memory
 *   /dev/vqlane/nvme-0000:01:00.0  one NVMe controller bound to the module
 *
 * Both need CAP_SYS_RAWIO to open. From them come further descriptors: a disk (the daemon's claim
 * on it), a queue of a disk, a guest's memory (mspace), and a queue pair of a controller. Closing
 * any of them at any moment, also by dying, is safe: commands of a queue pair end before memory
 * goes.
 *
 * Rules for every structure: @size is sizeof of it as the caller was compiled; a size the module
 * does not know is refused (E2BIG or EINVAL). Reserved fields and unknown flags must be zero (else
 * EINVAL). Sizes and offsets are bytes unless a name says otherwise.
 */
#ifndef _UAPI_LINUX_VQLANE_H
#define _UAPI_LINUX_VQLANE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Changes when an old daemon could misread a new module, or the reverse. */
#define VQL_ABI_VERSION 3

#define VQL_NAME_BYTES 64   /* disk names: 1…63 of [A-Za-z0-9_.-], zero-padded */
#define VQL_CONFIG_BYTES 64 /* room for struct virtio_blk_config (virtio 1.3 §5.2.4) */
#define VQL_SERIAL_BYTES 20
#define VQL_MODEL_BYTES 40

/* ---- /dev/vqlane/control ---- */

/**
 * struct vql_version - VQL_IOC_VERSION: what this module speaks
 * @size: sizeof(struct vql_version)
 * @abi: out: VQL_ABI_VERSION of the module
 * @max_queues: out: queues of one disk
 * @max_queue_size: out: entries of one queue
 * @max_disks: out: disks of the module
 * @reserved: zero
 */
struct vql_version {
	__u32 size;
	__u32 abi;
	__u32 max_queues;
	__u32 max_queue_size;
	__u32 max_disks;
	__u32 reserved;
};

/**
 * struct vql_disk_create - VQL_IOC_DISK_CREATE: make a disk and claim it; returns the disk's fd
 * @size: sizeof(struct vql_disk_create)
 * @flags: zero
 * @name: unique among the module's disks (else EEXIST); the vDPA device is "vqlane-NAME"
 * @features: virtio features offered (VQL_DISK_FEATURES at most; the module adds VERSION_1 and
 *            ACCESS_PLATFORM)
 * @queues: 1…VQL_MAX_QUEUES
 * @queue_size: largest ring accepted, a power of two 2…VQL_MAX_QUEUE_SIZE
 * @config: device configuration space, struct virtio_blk_config
 * @reserved: zero
 *
 * The disk lives in the module until VQL_IOC_DISK_REMOVE; its fd is only the claim.
 */
struct vql_disk_create {
	__u32 size;
	__u32 flags;
	char name[VQL_NAME_BYTES];
	__u64 features;
	__u32 queues;
	__u32 queue_size;
	__u8 config[VQL_CONFIG_BYTES];
	__u64 reserved[2];
};

/*
 * What a disk may offer: INDIRECT_DESC (28), EVENT_IDX (29), and of virtio-blk SEG_MAX (2), RO (5),
 * BLK_SIZE (6), FLUSH (9), TOPOLOGY (10), CONFIG_WCE (11), MQ (12), DISCARD (13), WRITE_ZEROES (14).
 */
#define VQL_DISK_FEATURES                                                                       \
	(1ull << 28 | 1ull << 29 | 1ull << 2 | 1ull << 5 | 1ull << 6 | 1ull << 9 | 1ull << 10 | \
	 1ull << 11 | 1ull << 12 | 1ull << 13 | 1ull << 14)

/**
 * struct vql_disk_claim - VQL_IOC_DISK_CLAIM: take over a disk that has no daemon; returns its fd
 * @size: sizeof(struct vql_disk_claim)
 * @flags: zero
 * @name: which; ENOENT: no such disk, EBUSY: claimed by another
 * @features: out: as created
 * @queues: out: as created
 * @queue_size: out: as created
 * @config: out: as it is now
 * @reserved: zero
 */
struct vql_disk_claim {
	__u32 size;
	__u32 flags;
	char name[VQL_NAME_BYTES];
	__u64 features;
	__u32 queues;
	__u32 queue_size;
	__u8 config[VQL_CONFIG_BYTES];
	__u64 reserved[2];
};

/**
 * struct vql_disk_next - VQL_IOC_DISK_NEXT: walk over all disks, in the order of their names
 * @size: sizeof(struct vql_disk_next)
 * @claimed: out: 1 when some process holds the disk
 * @name: in: the last name seen (all zero: from the beginning); out: the next. ENOENT: no more.
 * @vdpa: out: name of the vDPA device, for /sys/bus/vdpa/devices (zero-terminated)
 */
struct vql_disk_next {
	__u32 size;
	__u32 claimed;
	char name[VQL_NAME_BYTES];
	char vdpa[72];
};

/**
 * struct vql_mregion - a contiguous range of guest addresses
 * @guest: first guest address (IOVA), a multiple of 4096
 * @bytes: a multiple of 4096
 * @user: VQL_IOC_MSPACE_CREATE: where the caller has it mapped; VQL_IOC_MSPACE_REGIONS: zero
 * @first_page: out: index of its first page, in the tables and (times 4096) in the mspace's mmap
 * @flags: VQL_REGION_READ_ONLY: devices may read it only
 * @reserved: zero
 */
struct vql_mregion {
	__u64 guest;
	__u64 bytes;
	__u64 user;
	__u64 first_page;
	__u32 flags;
	__u32 reserved;
};
#define VQL_REGION_READ_ONLY 1u

/**
 * struct vql_mspace_create - VQL_IOC_MSPACE_CREATE: pin memory of the caller's; returns its fd
 * @size: sizeof(struct vql_mspace_create)
 * @nregions: 1…VQL_MAX_REGIONS
 * @regions: address of struct vql_mregion[@nregions], sorted by guest address, none overlapping;
 *           first_page is filled in
 * @reserved: zero
 *
 * For guests whose memory comes over vhost-user. Counted against no limit (CAP_SYS_RAWIO).
 */
struct vql_mspace_create {
	__u32 size;
	__u32 nregions;
	__u64 regions;
	__u64 reserved[2];
};

/* ---- a disk's fd ----
 *
 * The daemon serves the queues of a disk while it holds the disk's lease: VQL_IOC_DISK_ACQUIRE
 * takes it, VQL_IOC_DISK_YIELD gives it back after all that was taken from the rings was answered.
 * The module wants it back (VQL_DISK_RECALL) before anything changes on which running queues
 * depend: reset, suspend, a new memory map, a stopped queue. It waits drain_ms (a module parameter)
 * and then revokes: queue pairs that know the guest's memory are deleted on their controllers, and
 * the mappings of guest memory and in-flight record are zapped (SIGBUS on touch).
 *
 * poll(): POLLIN while VQL_IOC_DISK_STATE would tell something new since it was last called.
 * mmap(): offset 0, shared: the in-flight record, disk-lifetime memory of
 *   queues × VQL_INFLIGHT_BYTES(queue_size) bytes, zeroed at a guest's reset.
 */
#define VQL_INFLIGHT_BYTES(queue_size) (((__u64)(queue_size)*16 + 16 + 63) & ~63ull)

/**
 * struct vql_disk_state - VQL_IOC_DISK_STATE: how the guest has set the disk up
 * @size: sizeof(struct vql_disk_state)
 * @flags: out: VQL_DISK_*
 * @epoch: out: counts changes; for VQL_IOC_DISK_ACQUIRE
 * @features: out: what the driver accepted
 * @status: out: virtio device status (virtio 1.3 §2.1); 0 while no guest uses the disk
 * @writeback: out: the driver's wish for a writeback cache (VIRTIO_BLK_F_CONFIG_WCE)
 * @reserved: zero
 */
struct vql_disk_state {
	__u32 size;
	__u32 flags;
	__u64 epoch;
	__u64 features;
	__u32 status;
	__u32 writeback;
	__u64 reserved[2];
};
#define VQL_DISK_RUNNABLE (1u << 0) /* driver ok, memory known, at least one queue ready */
#define VQL_DISK_LEASED (1u << 1)   /* this claim holds the lease */
#define VQL_DISK_RECALL (1u << 2)   /* … and is to yield it now */
#define VQL_DISK_REVOKED (1u << 3)  /* … and lost it: drop everything, then ACQUIRE anew */
#define VQL_DISK_SUSPENDED (1u << 4)
#define VQL_DISK_DIRTY (1u << 5) /* the last lease ended without a yield: see the record */

/**
 * struct vql_disk_queue - VQL_IOC_DISK_QUEUE: one virtqueue as the driver set it up
 * @size: sizeof(struct vql_disk_queue)
 * @index: 0…queues-1
 * @desc: out: guest address of the descriptor table
 * @avail: out: … of the available ring
 * @used: out: … of the used ring
 * @num: out: entries
 * @ready: out: 1 when the driver made it ready
 * @next_avail: out: where the device goes on in the available ring (without DIRTY)
 * @flags: out: VQL_QUEUE_*
 * @returned: out: enum vql_queue_returned: why the queue is not lent any more
 * @refused: in: zero; out: requests that ended with IOERR in the module's lane since a remap program's
 *   answer for them was not the disk's to reach, since the disk was made
 * @served: out: requests that the module has answered in its own lane since the disk was made
 */
struct vql_disk_queue {
	__u32 size;
	__u32 index;
	__u64 desc;
	__u64 avail;
	__u64 used;
	__u32 num;
	__u32 ready;
	__u32 next_avail;
	__u32 flags;
	__u32 returned;
	__u32 refused;
	__u64 served;
};
#define VQL_QUEUE_LENT (1u << 0)  /* the module serves it: VQL_IOC_DISK_LEND */
#define VQL_QUEUE_BUSY (1u << 1)  /* … and it does more than busy_iops */
#define VQL_QUEUE_DIRTY (1u << 2) /* … did, and left requests in flight: see the record */
enum vql_queue_returned {
	VQL_RETURNED_NOT = 0,   /* lent, or never was, or the driver has reset the disk since */
	VQL_RETURNED_TAKEN = 1, /* VQL_IOC_DISK_TAKE */
	VQL_RETURNED_VERDICT =
		2, /* the request at the head of the ring is for the daemon (VQL_USER) */
	VQL_RETURNED_SHAPE = 3, /* … or of a shape that the module makes no commands of */
	VQL_RETURNED_LOST = 4,  /* a controller was reset or is gone; requests were in flight */
	VQL_RETURNED_START = 5, /* it could not be served (anew): memory, or a controller's queue */
};

/**
 * struct vql_lane_range - what a disk's requests may reach on a controller
 * @target: the number that remap programs give it (vqlane/remap.h)
 * @ctrl_fd: its controller, /dev/vqlane/nvme-…; -1: the daemon's to serve, as after VQL_USER
 * @nsid: namespace; 0 for the daemon's
 * @flags: VQL_RANGE_*
 * @sector: first sector of 512 bytes, of a whole block
 * @sectors: > 0, of whole blocks
 */
struct vql_lane_range {
	__u32 target;
	__s32 ctrl_fd;
	__u32 nsid;
	__u32 flags;
	__u64 sector;
	__u64 sectors;
};
#define VQL_RANGE_READ_ONLY 1u
#define VQL_MAX_RANGES 1024u

/**
 * struct vql_disk_lane - VQL_IOC_DISK_LANE: what the module needs to serve queues of this disk itself
 * @size: sizeof(struct vql_disk_lane)
 * @slot: the disk's index in the BPF maps, told to remap programs and tracepoints
 * @busy_iops: from this many requests a second on a queue is called busy; 0: never
 * @nranges: 0…VQL_MAX_RANGES; 0 takes back what was said before
 * @ranges: address of struct vql_lane_range[@nranges], by target and sector, none overlapping.
 *          Whatever a remap program answers, no request of this disk reaches anything else.
 * @id: what GET_ID answers (virtio 1.3 §5.2.6)
 * @reserved: zero
 *
 * Queues that are lent stand still while this changes. ENODEV, EAGAIN: a controller is gone, or is
 * being reset. EOPNOTSUPP: one has no interrupt left for a queue pair of the module's, or its queues are too
 * small for that (128 entries).
 */
struct vql_disk_lane {
	__u32 size;
	__u32 slot;
	__u32 busy_iops;
	__u32 nranges;
	__u64 ranges;
	__u8 id[20];
	__u32 reserved;
};

/**
 * struct vql_disk_lend - VQL_IOC_DISK_LEND: from now on the module serves this queue
 * @size: sizeof(struct vql_disk_lend)
 * @index: 0…queues-1
 * @next_avail: where it goes on in the available ring
 * @reserved: zero
 *
 * The caller says: all that I took from this queue was answered, and no command of mine for it is
 * under way. Needs the lease (ESTALE) and VQL_IOC_DISK_LANE (EINVAL). EOPNOTSUPP: the lane cannot
 * start; while a controller is being reset it waits until it can. The loan ends with
 * VQL_IOC_DISK_TAKE, when the driver stops the queue or resets the disk, or by itself, which poll()
 * tells; not with the lease, nor with the claim.
 */
struct vql_disk_lend {
	__u32 size;
	__u32 index;
	__u32 next_avail;
	__u32 reserved;
};

/**
 * struct vql_disk_take - VQL_IOC_DISK_TAKE: take a queue back
 * @size: sizeof(struct vql_disk_take)
 * @index: 0…queues-1
 *
 * The module takes no more requests from it. Once what it had taken is answered, or lost, the queue is
 * not VQL_QUEUE_LENT any more, which poll() tells. Needs the lease (ESTALE). Taken twice is taken once.
 */
struct vql_disk_take {
	__u32 size;
	__u32 index;
};

/**
 * struct vql_disk_remap - VQL_IOC_DISK_REMAP: ask the disk's remap program, as the kernel lane would
 * @size: sizeof(struct vql_disk_remap)
 * @index: 0…queues-1: the queue that the request is from
 * @op: enum vql_op: READ, WRITE, DISCARD or WRITE_ZEROES
 * @verdict: out: enum vql_verdict
 * @sector: on the disk, in sectors of 512 bytes
 * @sectors: > 0, within the disk
 * @status: out: what VQL_REFUSE answers with: IOERR or UNSUPP of enum vql_status
 * @target: out: for VQL_SERVE
 * @target_sector: out: for VQL_SERVE
 * @target_sectors: out: for VQL_SERVE: 1…@sectors rest there; for the rest ask again
 *
 * For requests of a disk with a policy that the kernel lane does not serve. Needs the lease (ESTALE)
 * and VQL_IOC_DISK_LANE (EINVAL). Where the program answers what the disk has no right to, it is
 * counted, and told as VQL_REFUSE.
 */
struct vql_disk_remap {
	__u32 size;
	__u32 index;
	__u32 op;
	__u32 verdict;
	__u64 sector;
	__u64 sectors;
	__u32 status;
	__u32 target;
	__u64 target_sector;
	__u64 target_sectors;
};

/**
 * struct vql_disk_acquire - VQL_IOC_DISK_ACQUIRE: take the lease; returns a fd of the guest memory
 * @size: sizeof(struct vql_disk_acquire)
 * @flags: zero
 * @epoch: of the VQL_IOC_DISK_STATE on which the caller acts; ESTALE when things have moved since,
 *         EAGAIN when the disk is not runnable, EBUSY when the caller has the lease already
 *
 * Queue pairs of an earlier, dead holder that know this memory are deleted first.
 */
struct vql_disk_acquire {
	__u32 size;
	__u32 flags;
	__u64 epoch;
};

/**
 * struct vql_disk_yield - VQL_IOC_DISK_YIELD: give the lease back
 * @size: sizeof(struct vql_disk_yield)
 * @nqueues: the disk's queues
 * @next_avail: address of __u32[@nqueues]: where each ready queue is to go on, below 65536; or
 *   VQL_YIELD_UNTOUCHED: the caller has not served it since it got it, so it stays as it is
 *
 * The caller says: everything taken was answered, no command of mine touches this guest's memory.
 * Queues that are lent stay so. One whose loan has ended meanwhile, perhaps without the caller's
 * knowledge, is for it untouched: where it is to go on is the module's to know.
 * ESTALE: the caller has no lease (any more): see VQL_DISK_REVOKED.
 */
struct vql_disk_yield {
	__u32 size;
	__u32 nqueues;
	__u64 next_avail;
};

#define VQL_YIELD_UNTOUCHED (~0u)

/**
 * struct vql_disk_config - VQL_IOC_DISK_CONFIG: new configuration space; the driver is told
 * @size: sizeof(struct vql_disk_config)
 * @reserved: zero
 * @config: as at creation; the driver's own field (writeback) is kept
 */
struct vql_disk_config {
	__u32 size;
	__u32 reserved;
	__u8 config[VQL_CONFIG_BYTES];
};

/*
 * VQL_IOC_DISK_QUEUE_FD (int argument: queue index): the queue's bell.
 *   poll(): POLLIN when the driver has kicked since the queue was last set up (level: it is never
 *   taken back; each kick gives one wake-up, as with an eventfd that nobody reads).
 *   write(): any 8 bytes interrupt the driver. Never blocks.
 * VQL_IOC_DISK_BROKEN: DEVICE_NEEDS_RESET (virtio 1.3 §2.1.2), and the driver is told.
 * VQL_IOC_DISK_REMOVE: end the disk. EBUSY while a VMM has it open; then VQL_REMOVE_LATER hides it
 *   from its name and ends it when the VMM lets go (the claim stays valid until then: go on
 *   answering; the name can be used again after that). Once it has ended poll() tells POLLHUP, and
 *   everything gives ENODEV.
 */
#define VQL_REMOVE_LATER 1u

/* ---- an mspace's fd ----
 * mmap(): shared, offset = first_page × 4096: the guest's memory (mspaces of a vDPA disk only).
 */

/**
 * struct vql_mspace_regions - VQL_IOC_MSPACE_REGIONS: what the guest's memory is made of
 * @size: sizeof(struct vql_mspace_regions)
 * @nregions: in: room at @regions; out: how many there are (E2BIG when they did not fit)
 * @regions: address of struct vql_mregion[]; neighbours in guest addresses and with equal flags
 *           are told as one
 * @pages: out: of all regions; the size of mmap and of DMA tables
 */
struct vql_mspace_regions {
	__u32 size;
	__u32 nregions;
	__u64 regions;
	__u64 pages;
};

/* ---- /dev/vqlane/nvme-… ----
 * poll(): POLLPRI when an asynchronous event came, or the controller's state changed, since
 * VQL_IOC_CTRL_INFO was last called; POLLHUP when it is gone.
 */

/**
 * struct vql_ctrl_info - VQL_IOC_CTRL_INFO
 * @size: sizeof(struct vql_ctrl_info)
 * @flags: out: VQL_CTRL_*
 * @state: out: enum vql_ctrl_state
 * @max_qpairs: out: queue pairs that the controller granted
 * @free_qpairs: out: … of which nobody uses these
 * @max_depth: out: entries of one queue (CAP.MQES + 1, at most VQL_MAX_QPAIR_DEPTH)
 * @max_transfer: out: MDTS in bytes (at most VQL_MAX_TRANSFER where the controller has no limit)
 * @sgls: out: SGLS of Identify Controller (NVMe 2.0 figure 275)
 * @oncs: out: ONCS, without what a quirk of the drive rules out
 * @volatile_cache: out: VWC: 1 when there is a volatile write cache
 * @namespaces: out: how many namespaces are active
 * @events: out: asynchronous events so far
 * @critical_warning: out: SMART critical warning bits, as last reported
 * @own_qpairs: out: how many the module itself uses, for the kernel lane
 * @serial: out: not terminated
 * @model: out: not terminated
 * @bdf: out: PCI address, zero-terminated
 * @dmsl: out: DMSL: logical blocks that the ranges of one Dataset Management command may have together;
 *        0: no limit told
 * @dmrsl: out: DMRSL: logical blocks of one such range; 0: no limit told
 * @dmrl: out: DMRL: ranges of one such command, at most 256; 0: no limit told
 * @wzsl: out: WZSL in bytes: what one Write Zeroes may cover; 0: no limit told
 * @crdt: out: CRDT1 to 3, in 100 ms, of a controller that was told to say with failed commands which of
 *        them counts (NVMe 2.0 §5.27.1.18, ACRE); else 0
 * @reserved: zero
 *
 * DMSL, DMRSL, DMRL and WZSL are of the I/O Command Set specific Identify Controller data structure
 * (NVM Command Set 1.0 figure 104), and 0 for a controller that does not have it.
 */
struct vql_ctrl_info {
	__u32 size;
	__u32 flags;
	__u32 state;
	__u32 max_qpairs;
	__u32 free_qpairs;
	__u32 max_depth;
	__u32 max_transfer;
	__u32 sgls;
	__u32 oncs;
	__u32 volatile_cache;
	__u32 namespaces;
	__u32 events;
	__u32 critical_warning;
	__u32 own_qpairs;
	char serial[VQL_SERIAL_BYTES];
	char model[VQL_MODEL_BYTES];
	char bdf[16];
	__u64 dmsl;
	__u32 dmrsl;
	__u32 dmrl;
	__u32 wzsl;
	__u16 crdt[3];
	__u16 reserved[3];
};
/* DMA goes through an IOMMU that translates, and what is unmapped is out of reach at once (no flush queue) */
#define VQL_CTRL_TRANSLATED (1u << 0)
#define VQL_CTRL_SHADOW (1u << 1)    /* shadow doorbells are in use (DBBUF) */
#define VQL_CTRL_SUSPENDED (1u << 2) /* RESETTING because the host sleeps: LIVE when it has woken */
enum vql_ctrl_state {
	VQL_CTRL_LIVE = 0,
	VQL_CTRL_RESETTING = 1,
	VQL_CTRL_DEAD = 2, /* failed, or was taken away */
};
#define VQL_MAX_QPAIR_DEPTH 1024u
#define VQL_MAX_TRANSFER (1u << 20)

/**
 * struct vql_ns_info - VQL_IOC_NS_INFO
 * @size: sizeof(struct vql_ns_info)
 * @nsid: in: which; ENOENT: not active. A namespace that cannot be served (metadata, protection
 *        information, blocks of other sizes) gives EOPNOTSUPP, with the reason in @reason
 * @blocks: out: NSZE
 * @block_bytes: out: 512 or 4096
 * @boundary_blocks: out: NOIOB, 0 = none
 * @flags: zero
 * @reserved: zero
 * @reason: out: text, zero-terminated
 */
struct vql_ns_info {
	__u32 size;
	__u32 nsid;
	__u64 blocks;
	__u32 block_bytes;
	__u32 boundary_blocks;
	__u32 flags;
	__u32 reserved;
	char reason[64];
};

/**
 * struct vql_admin_read - VQL_IOC_ADMIN_READ: Identify and SMART log, nothing else
 * @size: sizeof(struct vql_admin_read)
 * @what: VQL_ADMIN_*
 * @nsid: for VQL_ADMIN_IDENTIFY_NS and VQL_ADMIN_SMART (0xffffffff: the controller's)
 * @bytes: room at @data: 4096, or 512 for SMART
 * @data: address
 */
struct vql_admin_read {
	__u32 size;
	__u32 what;
	__u32 nsid;
	__u32 bytes;
	__u64 data;
};
#define VQL_ADMIN_IDENTIFY_CTRL 0u
#define VQL_ADMIN_IDENTIFY_NS 1u
#define VQL_ADMIN_ACTIVE_NS 2u /* list of active namespaces above nsid (Identify CNS 02h) */
#define VQL_ADMIN_SMART 3u

/**
 * struct vql_qpair_create - VQL_IOC_QPAIR_CREATE: make a queue pair; returns its fd
 * @size: sizeof(struct vql_qpair_create)
 * @flags: zero
 * @depth: in: entries wanted, 2…max_depth
 * @pool_pages: in: pages of 4096 wanted for PRP/SGL lists and bouncing, 0…VQL_MAX_POOL_PAGES
 * @qid: out: queue identifier
 * @doorbell_stride: out: bytes from one doorbell to the next (CAP.DSTRD)
 * @sq_doorbell: out: offset of the submission doorbell in the doorbell mapping; the completion
 *               doorbell is one stride further
 * @has_interrupt: out: 1: VQL_IOC_QPAIR_ARM works; 0: no vector was left, poll the queue
 * @sq_shadow: out: offset of the shadow submission doorbell, and of its event index, in their
 *             mappings (one stride further: the completion queue's); with VQL_CTRL_SHADOW only
 * @reserved: zero
 * @pool_dma: out: DMA address of the pool's first byte; it is contiguous
 *
 * ENOSPC: the controller has no queue left. ENODEV: it is gone. EAGAIN: it is resetting.
 */
struct vql_qpair_create {
	__u32 size;
	__u32 flags;
	__u32 depth;
	__u32 pool_pages;
	__u32 qid;
	__u32 doorbell_stride;
	__u32 sq_doorbell;
	__u32 has_interrupt;
	__u32 sq_shadow;
	__u32 reserved;
	__u64 pool_dma;
};
#define VQL_MAX_POOL_PAGES 1024u

/* ---- a queue pair's fd ----
 *
 * mmap(), shared, each part whole and at its own offset:
 */
#define VQL_QPAIR_MAP_STATUS (0ull << 32)   /* struct vql_qpair_status, one page, read only */
#define VQL_QPAIR_MAP_SQ (1ull << 32)       /* depth × 64 bytes, rounded up to pages */
#define VQL_QPAIR_MAP_CQ (2ull << 32)       /* depth × 16 bytes, rounded up to pages */
#define VQL_QPAIR_MAP_DOORBELL (3ull << 32) /* one page of the controller's BAR, uncached */
#define VQL_QPAIR_MAP_POOL (4ull << 32)     /* pool_pages pages */
#define VQL_QPAIR_MAP_SHADOW (5ull << 32)   /* one page, with VQL_CTRL_SHADOW */
#define VQL_QPAIR_MAP_EVENTIDX (6ull << 32) /* one page, with VQL_CTRL_SHADOW, read only */
#define VQL_QPAIR_MAP_DMA(slot) ((16ull + (slot)) << 32) /* DMA table of an attached mspace */

/**
 * struct vql_qpair_status - written by the module, read by the poller
 * @state: enum vql_qpair_state. Once it is not LIVE the controller will take no command and answer
 *         none; what was in flight may or may not have been done. Doorbells and queues are
 *         unmapped (SIGBUS on touch). Make a new queue pair, if the controller is live.
 */
struct vql_qpair_status {
	__u32 state;
};
enum vql_qpair_state {
	VQL_QPAIR_LIVE = 0,
	VQL_QPAIR_LOST = 1, /* deleted: fence or reset */
	VQL_QPAIR_GONE = 2, /* the controller is gone */
};

/*
 * VQL_IOC_QPAIR_ARM: the next completion interrupt makes the fd readable: POLLIN, until ARM is
 *   called again. Look at the completion queue after arming and before sleeping. POLLHUP when the
 *   state is no longer LIVE. Without ARM the queue pair interrupts nobody.
 */

/**
 * struct vql_qpair_attach - VQL_IOC_QPAIR_ATTACH: map a guest's memory for this controller
 * @size: sizeof(struct vql_qpair_attach)
 * @mspace_fd: the memory
 * @slot: out: for VQL_QPAIR_MAP_DMA: an array of @pages 64-bit words, read only: the DMA address of
 *        each page of the mspace, in the order of first_page
 * @reserved: zero
 * @pages: out: of the mspace
 *
 * Attached twice is attached once. ENOMEM/EIO: not mappable for this device (the reason is in the
 * kernel log). ENODEV: the queue pair is lost, or the memory was taken back. Replacing a vDPA
 * disk's memory (a new map from the VMM) carries the attachments over: attach the new fd to learn
 * its slot.
 */
struct vql_qpair_attach {
	__u32 size;
	__s32 mspace_fd;
	__u32 slot;
	__u32 reserved;
	__u64 pages;
};

/**
 * struct vql_qpair_detach - VQL_IOC_QPAIR_DETACH
 * @size: sizeof(struct vql_qpair_detach)
 * @slot: of the attachment. The caller says: no command of this queue pair touches that memory.
 */
struct vql_qpair_detach {
	__u32 size;
	__u32 slot;
};

/*
 * VQL_IOC_QPAIR_ABORT (int argument: command identifier): the command is overdue; NVMe Abort
 *   (NVMe 2.0 §5.1). The completion, if it comes, comes in the queue.
 * VQL_IOC_CTRL_RESET (on the controller): abort did not help. Delete its I/O queues, disable and enable
 *   the controller; all its queue pairs are lost, and until a state word says so commands may come back
 *   as aborted for that (status 0x08): they are to be done again. Returns when it is live again, or ENODEV;
 *   EAGAIN: somebody else resets it.
 */

#define VQL_IOC_MAGIC 0xB5

#define VQL_IOC_VERSION _IOWR(VQL_IOC_MAGIC, 0x00, struct vql_version)
#define VQL_IOC_DISK_CREATE _IOW(VQL_IOC_MAGIC, 0x01, struct vql_disk_create)
#define VQL_IOC_DISK_CLAIM _IOWR(VQL_IOC_MAGIC, 0x02, struct vql_disk_claim)
#define VQL_IOC_DISK_NEXT _IOWR(VQL_IOC_MAGIC, 0x03, struct vql_disk_next)
#define VQL_IOC_MSPACE_CREATE _IOWR(VQL_IOC_MAGIC, 0x04, struct vql_mspace_create)

#define VQL_IOC_DISK_STATE _IOWR(VQL_IOC_MAGIC, 0x10, struct vql_disk_state)
#define VQL_IOC_DISK_QUEUE _IOWR(VQL_IOC_MAGIC, 0x11, struct vql_disk_queue)
#define VQL_IOC_DISK_QUEUE_FD _IO(VQL_IOC_MAGIC, 0x12)
#define VQL_IOC_DISK_ACQUIRE _IOW(VQL_IOC_MAGIC, 0x13, struct vql_disk_acquire)
#define VQL_IOC_DISK_YIELD _IOW(VQL_IOC_MAGIC, 0x14, struct vql_disk_yield)
#define VQL_IOC_DISK_CONFIG _IOW(VQL_IOC_MAGIC, 0x15, struct vql_disk_config)
#define VQL_IOC_DISK_BROKEN _IO(VQL_IOC_MAGIC, 0x16)
#define VQL_IOC_DISK_REMOVE _IO(VQL_IOC_MAGIC, 0x17)
#define VQL_IOC_DISK_LANE _IOW(VQL_IOC_MAGIC, 0x18, struct vql_disk_lane)
#define VQL_IOC_DISK_LEND _IOW(VQL_IOC_MAGIC, 0x19, struct vql_disk_lend)
#define VQL_IOC_DISK_TAKE _IOW(VQL_IOC_MAGIC, 0x1a, struct vql_disk_take)
#define VQL_IOC_DISK_REMAP _IOWR(VQL_IOC_MAGIC, 0x1b, struct vql_disk_remap)

#define VQL_IOC_MSPACE_REGIONS _IOWR(VQL_IOC_MAGIC, 0x20, struct vql_mspace_regions)

#define VQL_IOC_CTRL_INFO _IOWR(VQL_IOC_MAGIC, 0x30, struct vql_ctrl_info)
#define VQL_IOC_NS_INFO _IOWR(VQL_IOC_MAGIC, 0x31, struct vql_ns_info)
#define VQL_IOC_ADMIN_READ _IOWR(VQL_IOC_MAGIC, 0x32, struct vql_admin_read)
#define VQL_IOC_QPAIR_CREATE _IOWR(VQL_IOC_MAGIC, 0x33, struct vql_qpair_create)
#define VQL_IOC_CTRL_RESET _IO(VQL_IOC_MAGIC, 0x34)

#define VQL_IOC_QPAIR_ARM _IO(VQL_IOC_MAGIC, 0x40)
#define VQL_IOC_QPAIR_ATTACH _IOWR(VQL_IOC_MAGIC, 0x41, struct vql_qpair_attach)
#define VQL_IOC_QPAIR_DETACH _IOW(VQL_IOC_MAGIC, 0x42, struct vql_qpair_detach)
#define VQL_IOC_QPAIR_ABORT _IO(VQL_IOC_MAGIC, 0x43)

#endif /* _UAPI_LINUX_VQLANE_H */
