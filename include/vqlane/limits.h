/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every bound of the data path, in one place. A loop that is not bounded by one of these is a bug.
 */
#ifndef VQLANE_LIMITS_H
#define VQLANE_LIMITS_H

enum {
	/* Virtqueues. A queue size is a power of two (virtio 1.3 §2.7). */
	VQL_MAX_QUEUES = 64,
	VQL_MIN_QUEUE_SIZE = 2,
	VQL_MAX_QUEUE_SIZE = 1024,

	/*
	 * Descriptors in one chain, an indirect table's included. The
	 * specification says queue size, but Linux drivers are known to exceed
	 * it with indirect tables, so the bound is the largest queue.
	 */
	VQL_MAX_CHAIN = 1024,

	/* What the device tells its driver in seg_max: data segments in one request. */
	VQL_SEG_MAX = 126,
	/*
	 * Segments that one request may become here: header, data and status,
	 * and each may straddle two memory regions.
	 */
	VQL_MAX_SEGS = 2 * (VQL_SEG_MAX + 2),
	/*
	 * … and where a driver takes no notice of seg_max (Windows' sends up to 515 segments): as much as a ring or
	 * an indirect table holds.
	 */
	VQL_MOST_SEGS = 2 * VQL_MAX_CHAIN,

	/* Payload of one request; more is answered with VIRTIO_BLK_S_IOERR. */
	VQL_MAX_IO_BYTES = 16 << 20,
	/* Sectors of one discard or write-zeroes request (2 GiB), told in config space. */
	VQL_MAX_DISCARD_SECTORS = 4 << 20,

	/* Guest memory: regions of one guest (the kernel's vhost offers 64, libvhost-user 32). */
	VQL_MAX_REGIONS = 64,

	/* Extent table: chunk sizes 64 KiB … 1 GiB, targets of one daemon. */
	VQL_MIN_CHUNK_SHIFT = 16,
	VQL_MAX_CHUNK_SHIFT = 30,
	/* Chunks beyond the first that one lookup reaches: a request's worth of the smallest ones. */
	VQL_MAX_RUN = VQL_MAX_IO_BYTES >> VQL_MIN_CHUNK_SHIFT,
	VQL_MAX_TARGETS = 4096,

	/* Daemon. */
	VQL_MAX_DISKS = 1024,
	VQL_DISK_NAME_BYTES = 64, /* with the zero behind it */
	VQL_MAX_POLLERS = 64,
	VQL_MAX_CONTROLLERS = 32, /* NVMe controllers of one daemon */
	/* Requests taken from one queue before the next queue has its turn. */
	VQL_BATCH = 32,

	/*
	 * NVMe commands that have failed for now (vql_nvme_retry_ms()): how often each is submitted again; after how
	 * many ms the first time, and four times as long each time after; and the longest that a drive may ask for.
	 * Five times this is what a guest's drain may have to wait for.
	 */
	VQL_NVME_RETRIES = 5,
	VQL_NVME_RETRY_MS = 10,
	VQL_NVME_RETRY_MOST_MS = 3000,

	/* The serial number that GET_ID returns (virtio 1.3 §5.2.6). */
	VQL_ID_BYTES = 20,
};

#endif
