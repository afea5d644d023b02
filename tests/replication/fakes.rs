//! Peers of our own making: a primary that says what a test wants, and a follower that asks for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::world::{CLUSTER, Primary};

#[allow(
    clippy::all,
    clippy::doc_markdown,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    reason = "generated code"
)]
pub(crate) mod pb {
    tonic::include_proto!("weir.v1");
}

use pb::follow_event::Event;
use pb::replication_client::ReplicationClient;
use pb::replication_server::{Replication, ReplicationServer};

type Out<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a made-up primary says.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) protocol: Option<u32>,
    pub(crate) catalog: Vec<(u64, &'static [u8])>,
    /// After the catalog.
    pub(crate) events: Vec<Event>,
    /// One in each beat, then empty beats.
    pub(crate) beats: Vec<pb::Beat>,
    pub(crate) chunks: Vec<pb::fetch_chunk::Chunk>,
}

/// A primary that is none.
pub(crate) struct FakePrimary {
    pub(crate) url: String,
    more: tokio::sync::watch::Sender<Vec<Event>>,
    fetches: Arc<Mutex<Vec<pb::FetchBegin>>>,
}

struct Serving {
    script: Script,
    more: tokio::sync::watch::Receiver<Vec<Event>>,
    fetches: Arc<Mutex<Vec<pb::FetchBegin>>>,
}

impl FakePrimary {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (more, said) = tokio::sync::watch::channel(Vec::new());
        let fetches = Arc::<Mutex<Vec<pb::FetchBegin>>>::default();
        let serving = Serving { script, more: said, fetches: Arc::clone(&fetches) };
        let service = ReplicationServer::new(serving).max_encoding_message_size(usize::MAX);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { url, more, fetches }
    }

    /// Says more on the live stream.
    pub(crate) fn say(&self, event: Event) {
        self.more.send_modify(|said| said.push(event));
    }

    pub(crate) fn fetches(&self) -> usize {
        self.fetches.lock().len()
    }
}

pub(crate) fn named(database: u64, name: &[u8]) -> pb::Named {
    pb::Named { database, name: name.to_vec().into() }
}

#[tonic::async_trait]
impl Replication for Serving {
    type FollowStream = Out<pb::FollowEvent>;
    type HeartbeatStream = Out<pb::Beat>;
    type FetchStream = Out<pb::FetchChunk>;
    type SumsStream = Out<pb::SumsChunk>;

    async fn sums(
        &self,
        _: Request<pb::SumsRequest>,
    ) -> Result<Response<Self::SumsStream>, Status> {
        Err(Status::unimplemented("sums"))
    }

    async fn follow(
        &self,
        request: Request<Streaming<pb::FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut requests = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = requests.message().await {} });
        let welcome = pb::Welcome {
            protocol: self.script.protocol.unwrap_or(weir::replication::PROTOCOL),
            software: "9.9".to_owned(),
            cluster: CLUSTER.get(),
            node: 99,
            name: "fake".to_owned(),
            epoch: 1,
        };
        let databases = self.script.catalog.iter().map(|(id, name)| named(*id, name)).collect();
        let catalog = pb::Catalog { databases, complete: true };
        let mut events = vec![Event::Welcome(welcome), Event::Catalog(catalog)];
        events.extend(self.script.events.iter().cloned());
        let mut more = self.more.clone();
        let (out, later) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let mut sent = 0;
            loop {
                let new: Vec<Event> = more.borrow_and_update().iter().skip(sent).cloned().collect();
                sent += new.len();
                for event in new {
                    if out.send(event).await.is_err() {
                        return;
                    }
                }
                if more.changed().await.is_err() {
                    return;
                }
            }
        });
        let later = tokio_stream::wrappers::ReceiverStream::new(later);
        let events = tokio_stream::iter(events).chain(later);
        let events = events.map(|event| Ok(pb::FollowEvent { event: Some(event) }));
        Ok(Response::new(Box::pin(events)))
    }

    async fn heartbeat(
        &self,
        _: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let beats = tokio_stream::iter(self.script.beats.clone());
        let empty = tokio_stream::iter(std::iter::repeat_with(pb::Beat::default));
        let paced = beats.chain(empty).throttle(Duration::from_millis(20));
        Ok(Response::new(Box::pin(paced.map(|beat| Ok(pb::Beat { epoch: 1, ..beat })))))
    }

    async fn fetch(
        &self,
        request: Request<Streaming<pb::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let mut requests = request.into_inner();
        if let Ok(Some(pb::FetchRequest { message: Some(pb::fetch_request::Message::Begin(b)) })) =
            requests.message().await
        {
            self.fetches.lock().push(b);
        }
        let chunks = tokio_stream::iter(self.script.chunks.clone());
        Ok(Response::new(Box::pin(chunks.map(|chunk| Ok(pb::FetchChunk { chunk: Some(chunk) })))))
    }
}

/// A follower that says what a test wants.
pub(crate) struct FakeFollower {
    pub(crate) client: ReplicationClient<Channel>,
}

impl FakeFollower {
    pub(crate) async fn dial(primary: &Primary) -> Self {
        let channel = Channel::from_shared(primary.url()).unwrap().connect().await.unwrap();
        let client = ReplicationClient::new(channel)
            .max_encoding_message_size(usize::MAX)
            .max_decoding_message_size(usize::MAX);
        Self { client }
    }

    pub(crate) fn caller(protocol: u32) -> pb::Caller {
        pb::Caller {
            protocol,
            software: "0.0.1".to_owned(),
            cluster: CLUSTER.get(),
            node: 77,
            name: "fake".to_owned(),
            session: 1,
        }
    }

    pub(crate) fn hello(protocol: u32) -> pb::FollowRequest {
        let hello = pb::Hello { caller: Some(Self::caller(protocol)), filters: vec![] };
        pb::FollowRequest { message: Some(pb::follow_request::Message::Hello(hello)) }
    }

    pub(crate) fn have(databases: Vec<pb::DatabasePosition>, complete: bool) -> pb::FollowRequest {
        let have = pb::Have { databases, complete };
        pb::FollowRequest { message: Some(pb::follow_request::Message::Have(have)) }
    }

    /// Opens a live stream and keeps it.
    pub(crate) async fn follow(
        &mut self,
        requests: impl Stream<Item = pb::FollowRequest> + Send + 'static,
    ) -> Result<Streaming<pb::FollowEvent>, Status> {
        let requests = requests.chain(tokio_stream::pending());
        Ok(self.client.follow(requests).await?.into_inner())
    }

    /// Opens a live stream as a follower that has nothing.
    pub(crate) async fn follow_all(&mut self) -> Streaming<pb::FollowEvent> {
        let requests = [Self::hello(weir::replication::PROTOCOL), Self::have(vec![], true)];
        self.follow(tokio_stream::iter(requests)).await.unwrap()
    }
}

/// Why a stream ended.
pub(crate) async fn end_of<T>(stream: Result<Streaming<T>, Status>) -> Status {
    match stream {
        Err(status) => status,
        Ok(mut stream) => loop {
            match stream.message().await {
                Ok(Some(_)) => (),
                Ok(None) => return Status::ok("the stream ended"),
                Err(status) => return status,
            }
        },
    }
}
