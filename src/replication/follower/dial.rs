//! Connections to a primary.
//!
//! Three of them, so that a beat never waits behind a transaction, and a transaction never behind pages.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use crate::replication::convert::{self, Incoming};
use crate::replication::error::LinkError;
use crate::replication::limits::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW, HELLO_TIMEOUT, MESSAGE_BYTES_MAX, PING_INTERVAL,
    PING_TIMEOUT, STREAM_WINDOW,
};
use crate::replication::message::{
    Beat, Caller, FetchChunk, FetchRequest, FollowEvent, FollowRequest, SumsChunk, SumsRequest,
};
use crate::replication::pb;
use crate::replication::pb::replication_client::ReplicationClient;

type Client = ReplicationClient<Channel>;

/// A primary that answers.
#[derive(Clone, Debug)]
pub(crate) struct Primary {
    live: Client,
    control: Client,
    bulk: Client,
}

/// Connects; `address` is `http://host:port`.
pub(crate) async fn dial(address: &str) -> Result<Primary, LinkError> {
    let fail = |source| LinkError::Connect { address: address.to_owned(), source };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(fail)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    // Looking up the name is not in the endpoint's timeout.
    let live =
        within(CONNECT_TIMEOUT * 2, async { endpoint.connect().await.map_err(fail) }).await?;
    Ok(Primary {
        live: client(live),
        control: client(endpoint.connect_lazy()),
        bulk: client(endpoint.connect_lazy()),
    })
}

fn client(channel: Channel) -> Client {
    Client::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(LinkError::Silent(limit)))
}

impl Primary {
    pub(crate) async fn follow(
        &self,
        requests: mpsc::Receiver<FollowRequest>,
    ) -> Result<Incoming<FollowEvent>, LinkError> {
        let events = self.live.clone().follow(convert::requests(requests)).await?;
        Ok(convert::incoming(events.into_inner()))
    }

    pub(crate) async fn heartbeat(&self, caller: Caller) -> Result<Incoming<Beat>, LinkError> {
        let request = convert::heartbeat_request(caller);
        let mut client = self.control.clone();
        within(HELLO_TIMEOUT, async {
            Ok(convert::incoming(client.heartbeat(request).await?.into_inner()))
        })
        .await
    }

    pub(crate) async fn sums(
        &self,
        request: SumsRequest,
    ) -> Result<Incoming<SumsChunk>, LinkError> {
        let mut client = self.bulk.clone();
        within(HELLO_TIMEOUT, async {
            let request = pb::SumsRequest::from(request);
            Ok(convert::incoming(client.sums(request).await?.into_inner()))
        })
        .await
    }

    pub(crate) async fn fetch(
        &self,
        requests: mpsc::Receiver<FetchRequest>,
    ) -> Result<Incoming<FetchChunk>, LinkError> {
        let mut client = self.bulk.clone();
        within(HELLO_TIMEOUT, async {
            Ok(convert::incoming(client.fetch(convert::requests(requests)).await?.into_inner()))
        })
        .await
    }
}
