//! The metrics socket: one HTTP/1.0 response with the counters for each connection.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::{
    metrics::{DeviceMetrics, prometheus_text},
    vhost_user::{Device, SocketListener},
};

/// Most connections at a time; beyond it the oldest is closed.
const MAX_CONNECTIONS: usize = 16;
/// Longest head of a request, of which only the method counts.
const MAX_REQUEST: usize = 4096;

/// Serves the metrics socket, without ever blocking on a client.
pub(super) struct MetricsSocket {
    listener: UnixListener,
    /// Removes the socket's file when it is dropped.
    _file: SocketListener,
    devices: Vec<Arc<Device>>,
    /// Freed for a connection that no other descriptor is left for.
    reserve: Option<UnixListener>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: UnixStream,
    request: Vec<u8>,
    /// The rest of the response, once the request is complete.
    response: Option<Vec<u8>>,
}

enum Progress {
    Waiting(EventSet),
    Done,
}

impl MetricsSocket {
    pub(super) fn new(socket: SocketListener, devices: Vec<Arc<Device>>) -> io::Result<Self> {
        let listener = socket.try_clone()?;
        let reserve = Some(socket.try_clone()?);
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            _file: socket,
            devices,
            reserve,
            connections: Vec::new(),
        })
    }

    fn accept(&mut self, ops: &mut EventOps) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(e) => {
                log::debug!("metrics socket: {e}");
                self.turn_away();
                return;
            }
        };
        if self.connections.len() == MAX_CONNECTIONS {
            let oldest = self.connections[0].stream.as_raw_fd();
            self.close(oldest, ops);
        }
        let watched = stream
            .set_nonblocking(true)
            .map_err(|e| e.to_string())
            .and_then(|()| {
                ops.add(Events::new(&stream, EventSet::IN))
                    .map_err(|e| e.to_string())
            });
        match watched {
            Ok(()) => self.connections.push(Connection {
                stream,
                request: Vec::new(),
                response: None,
            }),
            Err(e) => log::warn!("metrics socket: cannot serve a connection: {e}"),
        }
    }

    /// Closes a connection that cannot be accepted, or the event loop would be told of it again and
    /// again.
    fn turn_away(&mut self) {
        self.reserve = None;
        // Whatever this returns, there is nothing more to be done about the connection.
        drop(self.listener.accept());
        self.reserve = self.listener.try_clone().ok();
    }

    fn close(&mut self, fd: RawFd, ops: &mut EventOps) {
        if let Err(e) = ops.remove(Events::empty_raw(fd)) {
            log::debug!("metrics socket: {e}");
        }
        self.connections
            .retain(|connection| connection.stream.as_raw_fd() != fd);
    }

    fn advance(&mut self, fd: RawFd, ops: &mut EventOps) {
        let devices = &self.devices;
        let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.stream.as_raw_fd() == fd)
        else {
            return;
        };
        let progress = connection.advance(|request| response(request, devices));
        let watched = match &progress {
            Ok(Progress::Waiting(events)) => {
                ops.modify(Events::new(&connection.stream, *events)).is_ok()
            }
            Ok(Progress::Done) | Err(_) => false,
        };
        if !watched {
            self.close(fd, ops);
        }
    }
}

impl Connection {
    fn advance(&mut self, make_response: impl FnOnce(&[u8]) -> Vec<u8>) -> io::Result<Progress> {
        if self.response.is_none() {
            let mut bytes = [0; MAX_REQUEST];
            let count = match self.stream.read(&mut bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting(EventSet::IN));
                }
                other => other?,
            };
            self.request.extend_from_slice(&bytes[..count]);
            let complete = count == 0
                || self.request.windows(4).any(|w| w == b"\r\n\r\n")
                || self.request.windows(2).any(|w| w == b"\n\n");
            if !complete && self.request.len() < MAX_REQUEST {
                return Ok(Progress::Waiting(EventSet::IN));
            }
            self.response = Some(make_response(&self.request));
        }
        let response = self.response.get_or_insert_default();
        while !response.is_empty() {
            match self.stream.write(response) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting(EventSet::OUT));
                }
                other => {
                    response.drain(..other?);
                }
            }
        }
        Ok(Progress::Done)
    }
}

/// The response to `request`, whose body is made only for GET.
fn response(request: &[u8], devices: &[Arc<Device>]) -> Vec<u8> {
    let is_get = request.starts_with(b"GET ");
    if !is_get && !request.starts_with(b"HEAD ") {
        return b"HTTP/1.0 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            .to_vec();
    }
    let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
                Connection: close\r\n\r\n";
    if !is_get {
        return head.as_bytes().to_vec();
    }
    let devices: Vec<(String, &DeviceMetrics)> = (0..)
        .zip(devices)
        .map(|(index, device): (u32, _)| (index.to_string(), device.metrics()))
        .collect();
    let devices: Vec<(&str, &DeviceMetrics)> = devices
        .iter()
        .map(|(label, metrics)| (label.as_str(), *metrics))
        .collect();
    let text = prometheus_text(&devices);
    (head.to_owned() + &text).into_bytes()
}

impl MutEventSubscriber for MetricsSocket {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            log::error!("cannot serve the metrics socket: {e}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.advance(events.fd(), ops);
        }
    }
}
