complete -c vhost-device-dma -s s -l socket-path -d 'Listen on this Unix socket; the file appears once the device is ready' -r -F
complete -c vhost-device-dma -l fd -d 'Listen on this inherited file descriptor instead' -r
complete -c vhost-device-dma -s c -l socket-count -d 'Serve this many devices; with more than one, sockets are PATH0, PATH1, ...' -r
complete -c vhost-device-dma -l memory-size -d 'Bytes of device memory, a multiple of 4096 [default: 64M, or the size of the memory file]' -r
complete -c vhost-device-dma -l memory-file -d 'Keep device memory in this file; with several devices, in PATH0, PATH1, ...' -r -F
complete -c vhost-device-dma -l num-queues -d 'Request queues' -r
complete -c vhost-device-dma -l queue-size -d 'Largest size of each queue, a power of two up to 1024' -r
complete -c vhost-device-dma -l threads -d 'Threads that run the queues of a device, at most one for each [default: one for each queue]' -r
complete -c vhost-device-dma -l poll-us -d 'Look at an idle queue for up to this many microseconds before sleeping, as long as that finds requests; 0 always sleeps' -r
complete -c vhost-device-dma -l fault -d 'Do something wrong on purpose (repeatable; see below)' -r
complete -c vhost-device-dma -l seccomp -d 'What happens to system calls that the daemon has no business with: none (allow), log (allow, and show them in the kernel\'s log), kill' -r
complete -c vhost-device-dma -l metrics-socket -d 'Serve the counters as Prometheus text on this Unix socket (curl --unix-socket PATH http://localhost/metrics)' -r -F
complete -c vhost-device-dma -l log-level -d 'Log messages of this level and above: error, warn, info, debug, trace or off; "info,MODULE=debug" has another level for a module' -r
complete -c vhost-device-dma -l print-capabilities -d 'Print what this program is, as JSON for management tools, and exit, whatever else is given'
complete -c vhost-device-dma -l access-platform -d 'Offer VIRTIO_F_ACCESS_PLATFORM, with which drivers take addresses from their DMA API; goes with QEMU\'s iommu_platform=on. Nothing here translates addresses: no IOMMU may be in between'
complete -c vhost-device-dma -l once -d 'End when the first front end disconnects; with several devices, when each has had one'
complete -c vhost-device-dma -l share -d 'Let others use the memory file at the same time; with several devices, all use PATH itself'
complete -c vhost-device-dma -l hugepages -d 'Keep device memory in huge pages of the system\'s default size'
complete -c vhost-device-dma -l no-landlock -d 'Do not restrict access to files'
complete -c vhost-device-dma -s h -l help -d 'Print help'
complete -c vhost-device-dma -s V -l version -d 'Print version'
